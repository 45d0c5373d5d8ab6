"""Errors of exactly the sizes that rounding makes, with random signs, strip by strip."""

import zlib
from functools import cache

import torch
from torch import Tensor

from loractl.lora.dense import STRIP


def add_error_(tensor: Tensor, rounded: Tensor, key: str, start: int) -> None:
    """Add the error of rounding to a tensor, with random signs."""
    tensor.addcmul_(rounded - tensor, _signs(key, start, tensor.numel()).view_as(tensor))


def _signs(key: str, start: int, n: int) -> Tensor:
    """1 or -1 for each value (n,): the same for a table and for the head that is tied to it.

    One stretch of many random signs, which begins anywhere: to draw new ones for each strip takes
    twice as long as all that is done with them.
    """
    drawn = _drawn(2 * max(n, STRIP))
    first = zlib.crc32(f"{key} {start}".encode()) % (len(drawn) - n)
    return drawn[first : first + n]


@cache
def _drawn(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8).float() * 2 - 1
