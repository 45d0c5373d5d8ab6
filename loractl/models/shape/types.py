"""The structure of a model, without its weights, torch or transformers.

Names, kinds and sizes are those of the modules that transformers builds, so that `lora.ranks`
gives the same result here as in training.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loractl.errors import ModelError


@dataclass(frozen=True)
class Module:
    """A layer with a two-dimensional weight, or a stack of one per expert in a mixture.

    `role` is its function in the block: q, k, v, qkv, o, gate, up, gate_up, down, fc1, fc2,
    experts_up, experts_down; or outside the block: embedding, head, other. `linear`, `conv1d` and
    each of `experts` map d_in to d_out; an embedding has d_in = vocabulary and d_out = width.
    """

    path: str
    kind: str
    d_in: int
    d_out: int
    role: str
    bias: bool = False
    stack: int = 1

    @property
    def parameters(self) -> int:
        return self.stack * self.d_in * self.d_out + (self.d_out if self.bias else 0)

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Experts:
    """The experts of a mixture, over all blocks."""

    count: int
    active: int  # experts per token
    intermediate: int
    layers: int  # blocks that have them
    router: int = 0  # parameters of one block's router


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a causal LM. What a block computes decides what it keeps for the backward pass."""

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool  # the head shares the weight of the embedding
    modules: tuple[Module, ...]
    others: int  # parameters outside `modules`: norms, learned positions, routers
    norm: str = "rms"  # or layer
    norms: int = 2  # in a block
    qk_norm: bool = False
    gated: bool = True
    activation: str = "silu"
    rotary: str = "whole"  # part: of a head's width, or reassembled; none: other positions
    parallel: bool = False  # attention and MLP read the same input
    eager: bool = False  # transformers materializes the attention scores
    positions: int | None = None
    stored_width: int | None = None  # bytes per value in its files, if config.json says so
    experts: Experts | None = None
    windows: tuple[int | None, ...] = (None,)  # tokens that layers see, each distinct; None: all

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Path -> kind of every module that can carry an adapter, like `lora.inject.adaptable`."""
        return {module.path: module.kind for module in self.modules}

    @cached_property
    def by_path(self) -> dict[str, Module]:
        return {module.path: module for module in self.modules}

    @property
    def head(self) -> str | None:
        return next((m.path for m in self.modules if m.role == "head"), None)

    @cached_property
    def parameters(self) -> int:
        """All parameters, each counted once: a tied head shares the embedding's weight."""
        own = sum(m.parameters for m in self.modules)
        own -= sum(m.d_in * m.d_out for m in self.modules if m.role == "head" and self.tied)
        return own + self.others

    @cached_property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the blocks, experts included: what is quantized."""
        inside = (m for m in self.modules if m.role not in ("embedding", "head"))
        return sum(m.stack * m.d_in * m.d_out for m in inside)

    @cached_property
    def active_parameters(self) -> int:
        """Weights that one token is multiplied by: linear layers, its experts, the head."""
        experts = self.experts
        used = experts.active if experts else 1
        own = sum(
            m.d_in * m.d_out * (used if m.stack > 1 else 1)
            for m in self.modules
            if m.role != "embedding"
        )
        return own + (experts.layers * experts.router if experts else 0)


class Sizes:
    """Reads numbers from a config.json and reports what is missing or wrong."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where

    def __call__(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 40:
            found = "nothing" if value is None else repr(value)
            raise ModelError(f"{self.where}: {key}: found {found}, expected a positive integer")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"{self.where}: {key}: found {value!r}, expected true or false")
        return value

    def text(self, keys: Iterable[str], default: str) -> str:
        return next((str(found) for key in keys if (found := self.config.get(key))), default)

    def optional(self, key: str) -> int | None:
        return None if self.config.get(key) is None else self(key)
