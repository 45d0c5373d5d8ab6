"""Dropout without a stored mask: a seed and the position of a value decide whether it is dropped,
and the mask is recomputed for the gradient.

On the CPU a hash of the position decides: drawing 2,048 x 576 values takes torch's generator 12 ms
and the loop in kernels.c 0.3 ms, of which 0.2 ms are reading and writing. The formula here gives
the same bits when that loop is not available. On other devices torch's own generator draws the
mask: on a GPU it is as fast as memory, and the hash would take ten operations.
"""

from collections.abc import Sequence
from ctypes import CDLL
from dataclasses import dataclass

import torch
from torch import Tensor

from loractl.ops import native

WORD = 1 << 32


@dataclass(frozen=True)
class Mask:
    """Which values of an input (N, d) are dropped."""

    share: float  # of dropped values: 0 < share < 1
    seed: int  # 63 bits

    @property
    def scale(self) -> float:
        """The factor on the remaining values, which preserves the mean."""
        return 1 / (1 - self.share)

    @property
    def bound(self) -> int:
        """Values whose hash, as an int32, is below this are dropped."""
        return min(round(self.share * WORD), WORD - 1) - WORD // 2


def draw(shares: Sequence[float]) -> list[Mask | None]:
    """A new mask for each share, None where that is 0; seeds come from torch's CPU generator, in
    order."""
    count = sum(share > 0 for share in shares)
    seeds = iter(torch.randint(2**63 - 1, (count,), device="cpu").tolist() if count else ())
    return [Mask(share, next(seeds)) if share > 0 else None for share in shares]


def dropped(x: Tensor, mask: Mask | None) -> Tensor:
    """x (N, d) with dropped values set to zero and the rest scaled, like torch's dropout; x itself
    without a mask."""
    if mask is None:
        return x
    if x.stride(1) == 1 and x.is_cpu and (found := native.compiled(x.dtype)):
        y = torch.empty(x.shape, dtype=x.dtype)
        _call_loop(found, x, y, mask, add=False)
        return y
    return x.masked_fill(fallen(mask, *x.shape, device=x.device), 0.0).mul_(mask.scale)


def add_dropped_(y: Tensor, x: Tensor, mask: Mask) -> None:
    """Add `dropped(x, mask)` to y (N, d)."""
    assert x.shape == y.shape and x.dtype == y.dtype, (x.shape, y.shape, x.dtype, y.dtype)
    if x.stride(1) == y.stride(1) == 1 and x.is_cpu and (found := native.compiled(x.dtype)):
        _call_loop(found, x, y, mask, add=True)
    else:
        y.add_(dropped(x, mask))


def _call_loop(found: CDLL, x: Tensor, y: Tensor, mask: Mask, *, add: bool) -> None:
    found.dropout(
        *(x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), *x.shape),
        *(mask.seed % WORD, mask.seed // WORD, mask.bound, mask.scale),
        *(add, torch.get_num_threads()),
    )


def fallen(mask: Mask, n: int, d: int, *, device: torch.device) -> Tensor:
    """The mask itself, (n, d) of bool: True where a value is dropped."""
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(mask.seed)
        found = torch.empty(n, d, dtype=torch.bool, device=device)
        return found.bernoulli_(mask.share, generator=generator)
    rows = _mix_bits(torch.arange(n, dtype=torch.int32) + _as_signed(mask.seed % WORD))
    rows = _mix_bits(rows ^ _as_signed(mask.seed // WORD)).unsqueeze(1)  # (n, 1)
    columns = torch.arange(d, dtype=torch.int32) * _as_signed(0x9E3779B9)
    return _mix_bits(rows ^ columns) < mask.bound


def _mix_bits(x: Tensor) -> Tensor:
    """`mixed` of kernels.c on int32 words, whose products wrap around."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    return x * _as_signed(0x846CA68B)


def _as_signed(word: int) -> int:
    """The int32 with the same bits."""
    return word - WORD if word >= WORD // 2 else word
