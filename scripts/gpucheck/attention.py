"""Attention over examples of different length against the plain formula in float64.

torch's varlen flash kernel wherever it fits, and what is used instead where it does not.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gpucheck.place import Check, Place, differences
from gpucheck.report import Figure, Found, SkippedError
from loractl.ops.attention import varlen
from loractl.ops.attention.autograd import attention_backward, attention_forward
from loractl.ops.attention.blocks import Form
from loractl.ops.segments import Segments

LENGTHS, TINY_LENGTHS = (1, 7, 64, 129, 512, 1303), (1, 7, 12, 33)
WIDTHS = (64, 80, 96, 128, 192, 256)
HEADS = ((8, 8), (8, 2), (8, 1))  # of queries, of keys and values
BOUNDS = {torch.bfloat16: 1e-2, torch.float16: 1.5e-3, torch.float32: 1e-5}
"""Relative, in the Frobenius norm. The kernel rounds the probabilities and the result to 8 bits
(bfloat16) or 11 (float16), each by 0.3 units in the last place at the root mean square, that is
1.1e-3 and 1.4e-4 of a value, and the gradients once more; a key too many or too few is 5e-2."""
LOGSUMEXP = 1e-4
"""Products of 16-bit values are exact in float32, in which they are added; tensor cores cut off
bits of the sums."""


@dataclass(frozen=True)
class Inputs:
    """q, k, v as views of one buffer, which is how a fused product gives them, and dout."""

    q: Tensor  # (tokens, heads, d)
    k: Tensor  # (tokens, kv_heads, d)
    v: Tensor
    dout: Tensor  # (tokens, heads, d)
    segments: Segments
    scale: float

    @staticmethod
    def drawn(
        lengths: tuple[int, ...], heads: int, kv_heads: int, d: int, dtype: torch.dtype,
        device: torch.device,
    ) -> "Inputs":  # fmt: skip
        n, generator = sum(lengths), torch.Generator().manual_seed(d + heads)
        wide = torch.randn(n, heads + 2 * kv_heads, d, generator=generator)
        dout = torch.randn(n, heads, d, generator=generator)
        wide, dout = (one.to(dtype).to(device) for one in (wide, dout))
        q, k, v = wide.split([heads, kv_heads, kv_heads], dim=1)
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        spans = tuple(zip([0, *ends[:-1]], ends, strict=True))
        return Inputs(q, k, v, dout, Segments(1, n, spans), d**-0.5)


def formula(
    given: Inputs, window: int | None, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out, logsumexp (heads, tokens), dq, dk, dv: softmax(cap(scale q k')) v in float64, example by
    example, its gradients by autograd."""
    leaves = [x.detach().double().requires_grad_() for x in (given.q, given.k, given.v)]
    outs, sums, group = [], [], given.q.shape[1] // given.k.shape[1]
    for start, stop in given.segments.spans:
        q, k, v = (x[start:stop].transpose(0, 1) for x in leaves)  # (heads, n, d)
        k, v = (torch.stack([x] * group, 1).flatten(0, 1) for x in (k, v))
        scores = q @ k.mT * given.scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        place = torch.arange(stop - start, device=scores.device)
        back = place[:, None] - place
        hidden = (back < 0) | (back >= (window or stop))
        scores = scores.masked_fill(hidden, -torch.inf)
        sums.append(scores.logsumexp(-1))
        outs.append((scores.softmax(-1) @ v).transpose(0, 1))
    out = torch.cat(outs)
    dq, dk, dv = torch.autograd.grad(out, leaves, given.dout.double())
    return out, torch.cat(sums, 1), dq, dk, dv


def compare(
    given: Inputs, what: str, bound: float, window: int | None, softcap: float | None = None
) -> tuple[Figure, ...]:
    tensors = (given.q, given.k, given.v)
    options = {"scale": given.scale, "window": window, "softcap": softcap}
    out, saved = attention_forward(*tensors, given.segments, **options)
    of = attention_backward(given.dout, *tensors, out, saved, given.segments, **options)
    names = ("out", "logsumexp", "dq", "dk", "dv")
    expected = dict(zip(names, formula(given, window, softcap), strict=True))
    found = dict(zip(names, (out, saved, *of), strict=True))
    kept = {"logsumexp": LOGSUMEXP} if saved.numel() else {}
    bounds = {name: bound for name in names if name != "logsumexp"} | kept
    return tuple(
        figure
        for name in bounds
        for figure in differences({f"{what} {name}": (found[name], expected[name])}, bounds[name])
    )


def kernel(place: Place, *, dtype: torch.dtype, d: int) -> Found:
    """All that the varlen kernel is given: groups of heads, windows, a width."""
    if torch.cuda.get_device_capability(place.device) < (8, 0):
        raise SkippedError("the varlen kernel needs a GPU of Ampere or later")
    lengths = TINY_LENGTHS if place.pretend else LENGTHS
    figures: list[Figure] = []
    for heads, kv_heads in HEADS:
        given = Inputs.drawn(lengths, heads, kv_heads, d, dtype, place.device)
        for window in (None, max(lengths) // 3):
            assert varlen.kernel_fits(given.q, given.v, Form(given.scale, window)), (dtype, d)
            what = f"{heads}/{kv_heads}{f' window {window}' if window else ''}"
            figures += compare(given, what, BOUNDS[dtype], window)
    return Found(tuple(figures))


def fallback(place: Place, *, dtype: torch.dtype, softcap: float | None) -> Found:
    """What is used where the kernel does not fit."""
    lengths = TINY_LENGTHS if place.pretend else LENGTHS
    figures: list[Figure] = []
    for heads, kv_heads in HEADS:
        given = Inputs.drawn(lengths, heads, kv_heads, 64, dtype, place.device)
        form = Form(given.scale, softcap=softcap)
        assert not varlen.kernel_fits(given.q, given.v, form), (dtype, softcap)
        for window in (None, max(lengths) // 3):
            what = f"{heads}/{kv_heads}{f' window {window}' if window else ''}"
            figures += compare(given, what, BOUNDS[dtype], window, softcap)
    return Found(tuple(figures))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


CHECKS = (
    *(
        Check(f"attention/{_name(dtype)}-{d}", partial(kernel, dtype=dtype, d=d), 3)
        for dtype in (torch.bfloat16, torch.float16)
        for d in WIDTHS
    ),
    Check("attention/float32", partial(fallback, dtype=torch.float32, softcap=None), 3),
    Check("attention/softcap", partial(fallback, dtype=torch.bfloat16, softcap=30.0), 3),
)
