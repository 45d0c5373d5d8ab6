"""One micro-batch and how it is computed, the unit for which planning counts memory."""

from collections.abc import Mapping
from dataclasses import dataclass

QKV = ("q", "k", "v", "qkv")
INTO_MLP = ("gate", "up", "gate_up", "fc1")
OUT_OF_MLP = ("down", "fc2")

Roles = Mapping[str, tuple[int, int, int]]
"""Role of each adapted module of a block -> (rank, d_in, d_out)."""


@dataclass(frozen=True)
class Work:
    """One micro-batch and how it is computed."""

    batch: int
    length: int
    width: int  # bytes of a value: 2 for bfloat16 and float16, 4 for float32
    checkpointing: bool = False
    masked: bool = False  # several examples per row: attention with a mask, or by segments
    eager: bool = False  # attention computes all scores at once, unless it is by segments
    dropout: float = 0.0
    trained_share: float = 1.0  # share of the tokens that have a loss
    formula: str = "lora"
    full: bool = False
    quantized: bool = False  # products with packed weights keep their inputs: bitsandbytes'
    autocast: bool = False  # weights in float32, products in `width`
    starts: bool = False  # PiSSA, OLoRA: the update is relative to the start, at twice the rank
    whole_head: bool = False  # the head is trained in full, alongside adapters
    trains_embedding: bool = False  # likewise, or some of its rows
    fast: bool = True  # with hand-written layers, if they apply
    fused: bool = True  # activations in one operation each
    on_cpu: bool = False
    real: int | None = None  # tokens without padding, if known
    longest: int | None = None  # tokens of the longest example, if known
    previous: int | None = None  # tokens per row of the previous batch; None: the same

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def tokens_before(self) -> int:
        return self.tokens if self.previous is None else self.batch * self.previous

    @property
    def real_tokens(self) -> int:
        return self.tokens if self.real is None else self.real

    @property
    def longest_example(self) -> int:
        return self.length if self.longest is None else self.longest


@dataclass(frozen=True)
class Kept:
    """Bytes of one micro-batch."""

    blocks: int  # kept by all blocks until the backward pass reaches them
    block: int  # kept by one block, or with checkpointing by one block once recomputed
    outside: int  # final norm, positions, casts of weights, and the input of the head
    temporaries: int  # in addition, at most, during the forward or backward pass of a block
    logits: int  # at most, during the forward and backward pass of loss and final norm
    logits_kept: int  # the part of it still alive during the blocks' backward pass
    above: int = 0  # the part of `outside` freed by then: the final norm's, and the head's input

    @property
    def activations(self) -> int:
        return self.blocks + self.outside

    @property
    def below(self) -> int:
        """What is still there during the blocks' backward pass."""
        return self.activations - self.above
