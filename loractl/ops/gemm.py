"""Sums of matrix products, y = start + x_1 w_1 + x_2 w_2 + ...: a frozen layer and its update, or
the gradient of an input that several layers share.

On AMD processors gemm.c computes the sum in one pass. In float32 it is 1.1 to 1.6 times as fast as
torch's products, which read y again for each term; in bfloat16, on processors with instructions for
it, 0.97 to 1.15 times. In float32 on Intel processors with AVX-512 it is as fast as torch, and is
used because whole layers in C are built on it. Without instructions for bfloat16 it widens the
numbers and is about as fast as in float32, where torch is 5 to 50 times slower (scripts/LOG.md).
Everywhere else torch's products run one after the other.
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loractl.ops import held_memory, native, packed
from loractl.ops.native import INT, POINTER, REAL, SIZE
from loractl.ops.packed import Description, Packed, description, strips

FEW_ROWS = 4
"""With one row gemm.c takes twice as long as torch, which has a special case for it; with four it
is faster."""
SMALL = 256 * 256
"""Number of weight values below which the call costs as much as it saves."""


@dataclass(frozen=True)
class Term:
    """scale * x w; x (m, depth), w (depth, n), which may be a transposed view, or packed."""

    x: Tensor
    w: Tensor | Packed
    scale: float = 1.0


class _Term(ctypes.Structure):
    """`Term` of gemm.c."""

    _fields_ = (
        *(("x", POINTER), ("x_row", SIZE), ("w", POINTER), ("w_row", SIZE)),
        *(("depth", SIZE), ("scale", REAL), ("across", INT), ("packed", POINTER)),
    )


def products(
    terms: Sequence[Term], *, start: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """start + the sum of the terms, (m, n) in their dtype; `out` may be `start`.

    start is (m, n), or (n,) for every row, or None for 0. No gradients. With gemm.c a bfloat16 sum
    is rounded once, and a row does not depend on the other rows.
    """
    if found := _library_for(terms, start, out):
        y = out if out is not None else terms[0].x.new_empty(_product_shape(terms))
        call_products(found, y, start, terms)
        return y
    total = start
    for term in terms:
        total = _plus_product(total, term, out=out, given=total is start)
    assert total is not None
    return total


def _plus_product(y: Tensor | None, term: Term, *, out: Tensor | None, given: bool) -> Tensor:
    """y + a product, in torch; `given`: y is the caller's, so it is not written to."""
    x, w, scale = term.x, term.w, term.scale
    if isinstance(w, Packed) and (w.numel() <= packed.STRIP or not w.codes.is_cpu):
        w = w.dense()  # on a device whole: a strip costs as many launches
    if isinstance(w, Packed):
        product = _unpacked_product(x, w)
        if y is None:
            return torch.mul(product, scale, out=out)
        return torch.add(y, product, alpha=scale, out=out if given else y)
    if not given:
        assert y is not None
        return y.addmm_(x, w, alpha=scale)
    x = x if scale == 1.0 else x * scale
    return torch.mm(x, w, out=out) if y is None else torch.addmm(y, x, w, out=out)


def _unpacked_product(x: Tensor, w: Packed) -> Tensor:
    """x w, unpacking a strip of the stored rows at a time. Where the strips are added up, that is
    done in float32."""
    if w.turned:  # each strip gives columns of its own
        return torch.cat([x @ rows.T for _, _, rows in strips(w)], dim=1)
    total = torch.zeros(len(x), w.d_in, dtype=torch.float32, device=x.device)
    for start, stop, rows in strips(w):
        total += x[:, start:stop] @ rows
    return total.to(x.dtype)


@functools.cache
def serves_here(dtype: torch.dtype) -> bool:
    """Whether gemm.c and the code built on it are faster than torch on this processor."""
    words = set(native.processor().split())
    is_amd, is_intel = (
        words >= {maker, "avx2", "fma"} for maker in ("AuthenticAMD", "GenuineIntel")
    )
    if dtype == torch.bfloat16:  # torch uses Intel's instructions for it well, above all AMX
        return is_amd or (is_intel and not words & {"avx512_bf16", "amx_bf16"})
    return dtype == torch.float32 and (is_amd or (is_intel and "avx512f" in words))


def _product_shape(terms: Sequence[Term]) -> tuple[int, int]:
    return terms[0].x.shape[0], terms[0].w.shape[1]


def _library_for(
    terms: Sequence[Term], start: Tensor | None, out: Tensor | None
) -> ctypes.CDLL | None:
    dtype = terms[0].x.dtype
    if not serves_here(dtype) or len(terms[0].x) < FEW_ROWS:
        return None
    if sum(term.w.numel() for term in terms) < SMALL:
        return None
    weights = [term.w for term in terms]
    given = [start, out, *(term.x for term in terms), *weights]
    if any(
        one is not None and not (one.device.type == "cpu" and one.dtype == dtype) for one in given
    ):
        return None
    rows = (start, out, *(term.x for term in terms))
    if any(one is not None and one.stride(-1) != 1 for one in rows):
        return None
    if any(isinstance(w, Tensor) and 1 not in w.stride() for w in weights):
        return None
    return native.compiled(dtype)


def call_products(
    found: ctypes.CDLL, y: Tensor, start: Tensor | None, terms: Sequence[Term]
) -> None:
    """The sum of the products by gemm.c, written into y."""
    m, n = _product_shape(terms)
    assert y.shape == (m, n) and (start is None or start.shape in ((m, n), (n,)))
    given = (_Term * len(terms))()
    held: list[Description] = []  # until the call
    for to, term in zip(given, terms, strict=True):
        x, w = term.x, term.w
        assert x.shape == (m, len(w)) and w.shape[1] == n, (x.shape, w.shape, m, n)
        to.x, to.x_row, to.depth, to.scale = x.data_ptr(), x.stride(0), len(w), term.scale
        if isinstance(w, Packed):
            held.append(description(w))
            to.packed, to.across = ctypes.addressof(held[-1]), w.turned
        else:
            to.across = w.stride(1) != 1
            to.w, to.w_row = w.data_ptr(), w.stride(1 if to.across else 0)
    before = (0, 0)
    if start is not None:
        before = (start.data_ptr(), start.stride(0) if start.dim() == 2 else 0)
    threads, depth = torch.get_num_threads(), sum(len(term.w) + len(term.w) % 2 for term in terms)
    found.products(
        *(y.data_ptr(), y.stride(0), *before, m, n, ctypes.addressof(given), len(terms)),
        *(held_memory.scratch("step", found.workspace(depth, m, n, threads)).data_ptr(), threads),
    )
