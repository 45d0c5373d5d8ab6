"""Attention in which the examples of a packed row see themselves only, and cost only that.

Plain functions for layers that are written by hand, and one that autograd knows. Products and masks
are in attentionblocks.py, torch's kernels for CUDA in attentionvarlen.py.
"""

from typing import Any

import torch
from torch import Tensor

from loractl.ops import attentionblocks as blocks
from loractl.ops import attentionvarlen as varlen
from loractl.ops.attentionblocks import Form
from loractl.ops.segments import Segments


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k') v of each example, causal; a query head reads one of the kv heads.

    q (tokens, heads, d), k (tokens, kv_heads, d) and v (tokens, kv_heads, dv) hold the flat tokens
    of the batch and may be views; examples may share their start (ops/segments.py). With `window` a
    token sees itself and the window - 1 before it; with `softcap` scores become
    softcap * tanh(score / softcap) (Gemma 2). Returns out (tokens, heads, dv), contiguous, and what
    the backward pass wants besides it: empty where it computes everything again, the kernel's
    logsumexp (heads, tokens) in float32 on CUDA.
    """
    form = _form(segments, scale, window, softcap)
    if varlen.fits(q, v, form):
        return varlen.forward(q, k, v, segments, form)
    kv_heads, heads, tokens = k.shape[1], q.shape[1], q.shape[0]
    queries, keys, values = _grouped(q, kv_heads), k.transpose(0, 1), v.transpose(0, 1)
    out = _empty_grouped(queries, v.shape[2])
    scratch = blocks.Scratch.of(queries, segments.longest, form, width=v.shape[2], backward=False)
    for start, stop in segments.spans:
        blocks.forward_(
            queries[:, start:stop],
            _seen(keys, segments, start, stop),
            _seen(values, segments, start, stop),
            out[:, start:stop],
            scratch,
        )
    return out.transpose(0, 1).reshape(tokens, heads, -1), q.new_empty(0)


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    saved: Tensor,
    segments: Segments,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, each contiguous and in the shape of its own.

    `dout` is that of `out`; `out` and `saved` are what `attention_forward` gave, and the rest what
    it was given. Probabilities are computed again.
    """
    form = _form(segments, scale, window, softcap)
    if varlen.fits(q, v, form):
        return varlen.backward(dout, q, k, v, out, saved, segments, form)
    kv_heads = k.shape[1]
    queries, keys, values = _grouped(q, kv_heads), k.transpose(0, 1), v.transpose(0, 1)
    douts = _grouped(dout, kv_heads)
    dq = _empty_grouped(queries, q.shape[2])
    dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    scratch = blocks.Scratch.of(queries, segments.longest, form, width=v.shape[2], backward=True)
    for start, stop in segments.spans:
        k_seen, v_seen = (_seen(x, segments, start, stop) for x in (keys, values))
        shared = segments.before(start)
        dk_seen, dv_seen = (
            torch.zeros_like(x) if shared else dx[start:stop].transpose(0, 1)
            for x, dx in ((k_seen, dk), (v_seen, dv))
        )
        blocks.backward_(
            douts[:, start:stop], queries[:, start:stop], k_seen, v_seen,
            dq[:, start:stop], dk_seen, dv_seen, scratch,
        )  # fmt: skip
        if shared:
            for dx, found in ((dk, dk_seen), (dv, dv_seen)):
                dx[:shared] += found[:, :shared].transpose(0, 1)
                dx[start:stop] = found[:, shared:].transpose(0, 1)
    return dq.transpose(0, 1).reshape(q.shape), dk, dv


def segment_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`attention_forward` for autograd: out (tokens, heads, dv).

    Under autocast the products are in its dtype, as those of torch's own attention.
    """
    device = q.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    out: Tensor = _SegmentAttention.apply(q, k, v, segments, scale, window, softcap)  # type: ignore[no-untyped-call]
    return out


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Segments,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        ctx.options = {"scale": scale, "window": window, "softcap": softcap}
        ctx.segments = segments
        with torch.autocast(q.device.type, enabled=False):
            out, saved = attention_forward(q, k, v, segments, **ctx.options)
        ctx.save_for_backward(q, k, v, out, saved)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, saved = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            grads = attention_backward(dout, q, k, v, out, saved, ctx.segments, **ctx.options)
        return *grads, None, None, None, None


def _seen(x: Tensor, segments: Segments, start: int, stop: int) -> Tensor:
    """What a span sees of all keys or values (kv_heads, tokens, d): its own, behind shared ones."""
    own, shared = x[:, start:stop], segments.before(start)
    return torch.cat([x[:, :shared], own], dim=1) if shared else own


def _form(segments: Segments, scale: float, window: int | None, softcap: float | None) -> Form:
    """A window that hides nothing is none."""
    return Form(scale, None if window is None or window >= segments.longest else window, softcap)


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """(tokens, heads, d) -> (kv_heads, tokens, group, d): head kv * group + i reads kv head kv.

    A view where each kv head has one query head, else a copy: tokens and group become rows of one
    matrix.
    """
    grouped = x.view(len(x), kv_heads, -1, x.shape[2]).transpose(0, 1)
    return grouped if grouped.shape[2] == 1 else grouped.contiguous()


def _empty_grouped(q: Tensor, width: int) -> Tensor:
    """An empty (kv_heads, tokens, group, width) whose transpose is flat where group is 1."""
    kv_heads, tokens, group, _ = q.shape
    if group == 1:
        return q.new_empty(tokens, kv_heads, 1, width).transpose(0, 1)
    return q.new_empty(kv_heads, tokens, group, width)
