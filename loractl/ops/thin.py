"""Thin products, in which one factor or the result is only as wide as an adapter's rank: x A' for
the update and, in the backward pass, its gradient; t' x for the gradients of the factors.

They read a lot and compute little. On the processors listed in gemm.py, thin.c reads x once for
both: at rank 8 it is 2.0 to 2.9 times as fast as torch's two products in float32, and 1.2 to 1.8
times in bfloat16 (scripts/LOG.md). Everywhere else torch's products are used.
"""

import ctypes

import torch
from torch import Tensor

from loractl.ops import gemm, native

FEW_RANKS = 4
"""At a lower rank, thin.c is no faster than torch."""
MOST_ACROSS, MOST_DOWN, MOST_OF_BOTH = 16, 32, 64
"""Nor at a higher rank."""
SMALL, SMALL_FOR_BOTH = 128 * 1024, 16 * 1024
"""Number of values of x below which the call costs as much as it saves."""


def across(x: Tensor, A: Tensor) -> Tensor:
    """x A': x (n, d), A (r, d) -> (n, r), in their dtype. No gradients, here and below."""
    if found := _library_for(x, A, rank=len(A), most=MOST_ACROSS):
        u = x.new_empty(len(x), len(A))
        call_thin(found, x, len(A), A=A, u=u)
        return u
    return x @ A.T


def down(x: Tensor, t: Tensor) -> Tensor:
    """t' x: x (n, d), t (n, r) -> (r, d), in their dtype, or in float32 from thin.c."""
    if found := _library_for(x, t, rank=t.shape[1], most=MOST_DOWN):
        y = torch.empty(t.shape[1], x.shape[1])
        call_thin(found, x, len(y), t=t, y=y)
        return y
    return t.T @ x


def both(x: Tensor, A: Tensor, t: Tensor, *, u: Tensor, scale: float) -> Tensor:
    """`down`, and write scale * `across` to u (n, r), which may be part of wider rows."""
    if found := _library_for(x, A, t, u, rank=len(A), most=MOST_OF_BOTH):
        y = torch.empty(A.shape)
        call_thin(found, x, len(A), A=A, u=u, t=t, y=y, scale=scale)
        return y
    u.copy_((x @ A.T).mul_(scale))
    return t.T @ x


def _library_for(x: Tensor, *others: Tensor, rank: int, most: int) -> ctypes.CDLL | None:
    if not gemm.serves_here(x.dtype) or len(x) < gemm.FEW_ROWS:
        return None
    small = SMALL_FOR_BOTH if most == MOST_OF_BOTH else SMALL
    if not FEW_RANKS <= rank <= most or x.numel() < small:
        return None
    given = (x, *others)
    if not all(one.is_cpu and one.dtype == x.dtype and one.stride(1) == 1 for one in given):
        return None
    return native.compiled(x.dtype)


def call_thin(
    found: ctypes.CDLL, x: Tensor, r: int, *, A: Tensor | None = None, u: Tensor | None = None,
    t: Tensor | None = None, y: Tensor | None = None, scale: float = 1.0,
) -> None:  # fmt: skip
    """One pass of thin.c over x (n, d): into u (n, r), and with t (n, r) into y (r, d)."""
    n, d = x.shape
    for one, shape in ((A, (r, d)), (u, (n, r)), (t, (n, r)), (y, (r, d))):
        assert one is None or one.shape == shape, (one.shape, shape)
    assert y is None or (y.is_contiguous() and y.dtype == torch.float32)
    space = torch.empty(found.thin_workspace(n, r, d) if t is not None else 0)
    found.thin(
        *(
            *_matrix_place(x),
            n,
            d,
            r,
            *_matrix_place(A),
            scale,
            *_matrix_place(u),
            *_matrix_place(t),
        ),
        *(y.data_ptr() if y is not None else None, space.data_ptr(), torch.get_num_threads()),
    )


def _matrix_place(one: Tensor | None) -> tuple[int | None, int]:
    return (one.data_ptr(), one.stride(0)) if one is not None else (None, 0)
