"""The description of a Llama-like decoder layer, for the function in block.py."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from loractl.ops.lora_linear import Linear
from loractl.ops.pieces import Activation
from loractl.ops.segments import Segments

GROUPS = (slice(0, 3), slice(3, 4), slice(4, 6), slice(6, 7))
"""Which of a layer's linears share an input: q, k, v; o; gate, up; down."""


@dataclass(frozen=True)
class Norm:
    """An RMS norm: x / rms(x) times (offset + weight)."""

    weight: Tensor  # (width,), frozen
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class Shape:
    """What differs between the layers of this family, apart from their weights."""

    heads: int
    kv_heads: int
    head_dim: int
    scaling: float  # of the scores
    activation: Activation  # of the gate
    rotary: bool = True
    window: int | None = None
    softcap: float | None = None
    residual: float = 1.0  # factor on attention and MLP before they are added (Granite)


@dataclass(frozen=True)
class Layer:
    """The weights of a layer. Norms that an architecture does not have are None."""

    shape: Shape
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    before_attention: Norm
    before_mlp: Norm
    after_attention: Norm | None = None  # Gemma 2 and 3
    after_mlp: Norm | None = None
    q_norm: Norm | None = None  # Qwen 3, Gemma 3: over each head
    k_norm: Norm | None = None
    arrive: Callable[[], None] | None = None
    """Brings the weights to memory before the layer computes, if they are not always there."""

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.q, self.k, self.v, self.o, self.gate, self.up, self.down


@dataclass(frozen=True)
class Place:
    """The positions of a batch's tokens: N = rows x length."""

    segments: Segments
    cos: Tensor  # (N, rotated), in float32, rounded to the dtype of the layer
    sin: Tensor
