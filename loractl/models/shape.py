"""config.json -> ModelShape: what a model is made of, without its weights, torch or transformers.

Names, kinds and sizes are those of the modules that transformers builds, so that `lora.ranks`
decides here as it does in training. How each architecture is laid out is told in `families`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from loractl.errors import ModelError

LLAMA = {"model_type": "llama", "vocab_size": 32000, "hidden_act": "silu"}
SIZES: dict[str, dict[str, Any]] = {
    # Llama 2 (arXiv 2307.09288) and, for 30B, LLaMA (arXiv 2302.13971, table 2)
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "max_position_embeddings": 4096},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
            "num_attention_heads": 40, "max_position_embeddings": 4096},
    "30B": {"hidden_size": 6656, "intermediate_size": 17920, "num_hidden_layers": 60,
            "num_attention_heads": 52, "max_position_embeddings": 2048},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 4096},
}  # fmt: skip

WIDTHS: dict[Any, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Module:
    """A layer with a weight of two dimensions, or a stack of as many as a mixture has experts.

    `role` says what it does in its block: q, k, v, qkv, o, gate, up, gate_up, down, fc1, fc2,
    experts_up, experts_down, or outside of it: embedding, head, other. `linear`, `conv1d` and each
    of `experts` map d_in to d_out; an embedding has d_in = vocabulary and d_out = width.
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
    """The experts of a mixture, all blocks together."""

    count: int
    active: int  # experts a token goes through
    intermediate: int
    layers: int  # blocks that have them
    router: int = 0  # values of a block's router


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
    rotary: str = "whole"  # part: of a head's width, or put together anew; none: other positions
    parallel: bool = False  # attention and MLP read the same input
    eager: bool = False  # transformers computes the scores of attention whole
    positions: int | None = None
    stored_width: int | None = None  # bytes of a value in its files, where config.json tells
    experts: Experts | None = None
    windows: tuple[int | None, ...] = (None,)  # tokens that layers see, each kind once; None: all

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Path -> kind of every module that can carry an adapter, as `lora.inject.adaptable`."""
        return {module.path: module.kind for module in self.modules}

    @cached_property
    def by_path(self) -> dict[str, Module]:
        return {module.path: module for module in self.modules}

    @property
    def head(self) -> str | None:
        return next((m.path for m in self.modules if m.role == "head"), None)

    @cached_property
    def parameters(self) -> int:
        """Every parameter once: the weight of a tied head is that of the embedding."""
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
        """Weights that one token is multiplied with: linear layers, its experts, the head."""
        experts = self.experts
        used = experts.active if experts else 1
        own = sum(
            m.d_in * m.d_out * (used if m.stack > 1 else 1)
            for m in self.modules
            if m.role != "embedding"
        )
        return own + (experts.layers * experts.router if experts else 0)


def named(size: str) -> ModelShape:
    """The Llama of a size: 7B, 13B, 30B or 70B."""
    return from_config({**LLAMA, **SIZES[size]}, where=size)


def read(directory: Path) -> ModelShape:
    """The shape of the model in a directory, from its config.json. Raises ModelError."""
    path = directory if directory.suffix == ".json" else directory / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: not found; a base model has a config.json") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ModelError(f"{path}: expected a JSON object with model_type")
    return from_config(content, where=str(path))


def from_config(config: Mapping[str, Any], *, where: str) -> ModelShape:
    """The shape that a config.json describes; `where` names it in errors.

    Raises ModelError for an architecture whose layout is not known here, and for a size that is
    missing or no positive number: nothing is guessed.
    """
    from loractl.models.families import FAMILIES

    architecture = config["model_type"]
    if architecture not in FAMILIES:
        raise ModelError(
            f"{where}: model_type {architecture}: its shape cannot be derived here, which knows"
            f" {', '.join(sorted(FAMILIES))}; give a size instead: --model 7B"
        )
    shape = FAMILIES[architecture](Sizes(config, where))
    return replace(shape, stored_width=WIDTHS.get(config.get("dtype", config.get("torch_dtype"))))


class Sizes:
    """Reads numbers out of a config.json, and says what is missing or wrong."""

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
