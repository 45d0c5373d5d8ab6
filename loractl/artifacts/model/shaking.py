"""Errors of exactly the sizes that rounding makes, with random signs, strip by strip."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor


def add_error_(tensor: Tensor, rounded: Tensor, key: str, start: int) -> None:
    """Add the error of rounding to a tensor, with random signs."""
    error = rounded - tensor
    low, high = torch.aminmax(error)
    if low != 0 or high != 0:  # a tensor that its dtype holds as it is has none
        tensor.add_(torch.where(_signs(key, start, tensor.shape), -error, error))


def _signs(key: str, start: int, shape: Sequence[int]) -> Tensor:
    """Whether each error is flipped: the same for a table and for the head that is tied to it."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{key} {start}".encode()))
    n = torch.Size(shape).numel()
    drawn = torch.empty(-(-n // 8), dtype=torch.int64)
    drawn.random_(-(2**63), None, generator=generator)  # eight signs at once
    return (drawn.view(torch.int8)[:n] < 0).view(*shape)
