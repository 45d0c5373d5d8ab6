"""What can be counted exactly: trained parameters, the size of an adapter file, matrix products."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from loractl.lora.ranks import ModuleRank, is_named
from loractl.models.shape.types import ModelShape, Module
from loractl.planning.trained_tensors import of_adapters

LARGEST_HEADER_FIELD = 8  # bytes: safetensors writes the header's length in front of it


@dataclass(frozen=True)
class Kind:
    """The adapted modules that share a name."""

    modules: int
    parameters: int
    shapes: tuple[tuple[int, int], ...]  # (d_in, d_out)


def of_module(module: Module, rank: int, formula: str = "lora") -> int:
    """Values that an adapter trains: r (d_in + d_out), plus d_out for DoRA or r for AdaLoRA; for
    fused experts, that many per expert."""
    extra = {"lora": 0, "dora": module.d_out, "adalora": rank}[formula]
    return module.stack * (rank * (module.d_in + module.d_out) + extra)


def trained(shape: ModelShape, ranks: Mapping[str, ModuleRank], formula: str = "lora") -> int:
    """Values that all adapters train together."""
    return sum(of_module(shape.by_path[path], size.rank, formula) for path, size in ranks.items())


def by_kind(
    shape: ModelShape, ranks: Mapping[str, ModuleRank], formula: str = "lora"
) -> dict[str, Kind]:
    """The same, grouped by the last part of the module names: q_proj, down_proj, ..."""
    found: dict[str, list[tuple[Module, int]]] = {}
    for path, size in ranks.items():
        module = shape.by_path[path]
        found.setdefault(module.name, []).append((module, size.rank))
    return {
        name: Kind(
            len(ones),
            sum(of_module(module, rank, formula) for module, rank in ones),
            tuple(sorted({(module.d_in, module.d_out) for module, _ in ones})),
        )
        for name, ones in found.items()
    }


def saved_whole(shape: ModelShape, names: tuple[str, ...]) -> int:
    """Parameters of the modules that lora.modules_to_save trains in full."""
    return sum(m.parameters for m in shape.modules if any(is_named(m.path, n) for n in names))


def new_rows(shape: ModelShape, tokens: int) -> int:
    """Values of the rows of new tokens, in the embedding and in a head with its own weight."""
    return tokens * shape.hidden * (1 if shape.tied else 2)


def file_bytes(
    shape: ModelShape, ranks: Mapping[str, ModuleRank], formula: str = "lora", *, width: int = 4
) -> int:
    """Bytes of adapter_model.safetensors: the values, and the header that names and places them.

    The layout is that of the safetensors format: eight bytes for the header's length, JSON padded
    to a multiple of eight that lists the tensors by dtype and name, then the values.
    """
    tensors = of_adapters(shape, ranks, formula)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + width * math.prod(tensors[name])
        dtype = {2: "BF16", 4: "F32"}[width]
        header[name] = {"dtype": dtype, "shape": tensors[name], "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return LARGEST_HEADER_FIELD + -(-length // 8) * 8 + end


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one training step: an n by m product counts 2 n m per token."""

    forward: int  # of the base
    full: int  # forward pass, gradients of inputs and of weights
    lora: int  # forward pass, gradients of inputs, and everything that the adapters compute
    low_rank: int  # B (A x) of every adapter, forward
    product: int  # (B A) x, forward: B A formed once, then a product as large as W
    recomputed: int  # added by checkpointing


def flops(shape: ModelShape, ranks: Mapping[str, ModuleRank], *, batch: int, length: int) -> Flops:
    """Count the products of a step over `batch` rows of `length` tokens; causal attention is half.

    A frozen weight needs no gradient, which leaves two thirds of the products of full fine-tuning,
    plus a little for the adapters ("LoRA Without Regret", Schulman 2025).
    """
    tokens = batch * length
    weights = 2 * shape.active_parameters * tokens
    scores = 2 * shape.layers * shape.heads * shape.head_dim * length * tokens
    forward = weights + scores
    active = shape.experts.active if shape.experts else 1
    modules = [(shape.by_path[path], size.rank) for path, size in ranks.items()]
    sizes = [  # with the number of times that a token goes through each
        (m, rank, active if m.stack > 1 else 1) for m, rank in modules if m.kind != "embedding"
    ]
    low_rank = sum(2 * rank * (m.d_in + m.d_out) * uses for m, rank, uses in sizes) * tokens
    formed = sum(2 * rank * m.d_in * m.d_out * m.stack for m, rank, _ in sizes)
    applied = sum(2 * m.d_in * m.d_out * uses for m, _, uses in sizes) * tokens
    return Flops(
        forward=forward,
        full=3 * weights + 3 * scores,
        lora=2 * weights + 3 * scores + 3 * low_rank,
        low_rank=low_rank,
        product=formed + applied,
        recomputed=forward,
    )
