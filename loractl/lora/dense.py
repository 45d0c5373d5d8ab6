"""Sizes of the layers that carry adapters, and their weights as plain numbers.

A packed weight (in 4 bits, say) has neither the shape nor the values of the matrix it represents:
sizes come from the attributes of the module, and the matrix from its `dense_weight` method.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from loractl.quant.linear import PackedLinear
from loractl.records import ARRIVE

STRIP = 1 << 19
"""Values of a weight in hand at a time: 4 MiB in float64, which caches hold."""


@dataclass(frozen=True)
class MatrixSize:
    """A layer maps d_in inputs to d_out outputs, `stack` times in fused experts."""

    d_in: int
    d_out: int
    stack: int = 1


def size_of(module: nn.Module, kind: str, parameter: str = "weight") -> MatrixSize:
    """The size of a layer; for an embedding, d_in is the vocabulary and d_out the width."""
    if kind == "linear":
        assert isinstance(module, nn.Linear | PackedLinear), type(module)
        return MatrixSize(module.in_features, module.out_features)
    if kind == "embedding":
        assert isinstance(module, nn.Embedding), type(module)
        return MatrixSize(module.num_embeddings, module.embedding_dim)
    if kind == "conv1d":
        return MatrixSize(int(getattr(module, "nx")), int(getattr(module, "nf")))  # noqa: B009
    # No backend packs fused experts, and only their parameter tells the sizes.
    weight = getattr(module, parameter)
    return MatrixSize(*matrix_sizes(kind, weight), weight.shape[0])


def matrix_sizes(kind: str, weight: torch.Tensor) -> tuple[int, int]:
    """(d_in, d_out) of a dense matrix laid out as the weight of a layer of this kind."""
    rows, columns = weight.shape[-2:]
    return (columns, rows) if kind in ("linear", "experts") else (rows, columns)


def dense_weight_of(module: nn.Module, parameter: str = "weight") -> torch.Tensor:
    """The frozen weight as a matrix of floating-point numbers, laid out as the layer's own.

    A module whose weight is packed unpacks it in its `dense_weight` method; for any other module
    this is the weight itself, not a copy.
    """
    _await(module)
    unpack = getattr(module, "dense_weight", None)
    weight = unpack() if unpack is not None else getattr(module, parameter)
    assert isinstance(weight, torch.Tensor), type(weight)
    return weight


def _await(module: nn.Module) -> None:
    """Have the weights of a module brought to memory, if they are not always there."""
    if (arrive := getattr(module, ARRIVE, None)) is not None:
        arrive()


def strips(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Rows of a matrix (or experts of a stack) in strips of at most STRIP values."""
    rows = max(1, STRIP // math.prod(shape[1:]))
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def rows_of(
    module: nn.Module, parameter: str = "weight"
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The frozen weight in strips, (start, stop, rows), of which one is unpacked at a time."""
    _await(module)
    if isinstance(module, PackedLinear):
        packed = module.packed
        for start, stop in strips((packed.d_out, packed.d_in)):
            yield start, stop, packed.rows(start, stop)
        return
    weight = dense_weight_of(module, parameter).detach()
    for start, stop in strips(weight.shape):
        yield start, stop, weight[start:stop]


def dtype_and_device(
    module: nn.Module, parameter: str = "weight"
) -> tuple[torch.dtype, torch.device]:
    """Those of the numbers that the frozen weight stands for."""
    weight = module.packed if isinstance(module, PackedLinear) else getattr(module, parameter)
    return weight.dtype, weight.device
