"""Attention in which each example of a packed row sees only itself, and costs only that.

Plain functions for hand-written layers, and one for autograd. Products and masks are in blocks.py,
the grouping of examples in packing.py, the C implementation in tasks.py, and torch's CUDA kernels
in varlen.py.
"""

from typing import Any

import torch
from torch import Tensor

from loractl.ops.attention import blocks, tasks, varlen
from loractl.ops.attention.blocks import Form
from loractl.ops.attention.packing import Pack, pack_of
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
    """Causal softmax(scale * q k') v of each example; each query head reads one of the kv heads.

    q (tokens, heads, d), k (tokens, kv_heads, d) and v (tokens, kv_heads, dv) hold the flat tokens
    of the batch and may be views; examples may share their start (ops/segments.py). With `window` a
    token sees itself and the window - 1 tokens before it; with `softcap` scores become
    softcap * tanh(score / softcap) (Gemma 2). Returns out (tokens, heads, dv), contiguous, and what
    the backward pass needs besides it: the kernel's logsumexp (heads, tokens) in float32 on CUDA
    and with attention.c, or an empty tensor where everything is recomputed.
    """
    form = _make_form(segments, scale, window, softcap)
    if varlen.kernel_fits(q, v, form):
        return varlen.forward(q, k, v, segments, form)
    if tasks.task_fits(q, k, v, segments, form):
        return tasks.forward(q, k, v, segments, form)
    if q.shape[1] > k.shape[1]:
        return _attend_packed(q, k, v, pack_of(q, k, segments), form), q.new_empty(0)
    queries, keys, values = _heads_first(q)[:, :, None], _heads_first(k), _heads_first(v)
    out = q.new_empty(*q.shape[:2], v.shape[2])  # (tokens, heads, dv)
    scratch = blocks.Scratch.of(queries, segments.longest, form, width=v.shape[2], backward=False)
    results = _heads_first(out)[:, :, None]
    for start, stop in segments.spans:
        blocks.forward_(
            queries[:, start:stop],
            _keys_seen(keys, segments, start, stop),
            _keys_seen(values, segments, start, stop),
            results[:, start:stop],
            scratch,
        )
    return out, q.new_empty(0)


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
    """The gradients of q, k and v, each contiguous and in the same shape as its input.

    `dout` is the gradient of `out`; `out` and `saved` are the results of `attention_forward`, the
    other arguments are its inputs. Probabilities are recomputed.
    """
    form = _make_form(segments, scale, window, softcap)
    if varlen.kernel_fits(q, v, form):
        return varlen.backward(dout, q, k, v, out, saved, segments, form)
    if saved.numel():
        return tasks.backward(dout, q, k, v, out, saved, segments, form)
    if q.shape[1] > k.shape[1]:
        pack = pack_of(q, k, segments)
        slots = _packed_gradients(dout, q, k, v, pack, form)
        return pack.of_queries(slots[0]), pack.of_keys(slots[1]), pack.of_keys(slots[2])
    douts, queries = _heads_first(dout)[:, :, None], _heads_first(q)[:, :, None]
    keys, values = _heads_first(k), _heads_first(v)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    dqueries = _heads_first(dq)[:, :, None]
    scratch = blocks.Scratch.of(queries, segments.longest, form, width=v.shape[2], backward=True)
    for start, stop in segments.spans:
        k_seen, v_seen = (_keys_seen(x, segments, start, stop) for x in (keys, values))
        shared = segments.before(start)
        dk_seen, dv_seen = (
            torch.zeros_like(x) if shared else dx[start:stop].transpose(0, 1)
            for x, dx in ((k_seen, dk), (v_seen, dv))
        )
        blocks.backward_(
            douts[:, start:stop], queries[:, start:stop], k_seen, v_seen,
            dqueries[:, start:stop], dk_seen, dv_seen, scratch,
        )  # fmt: skip
        if shared:
            for dx, found in ((dk, dk_seen), (dv, dv_seen)):
                dx[:shared] += found[:, :shared].transpose(0, 1)
                dx[start:stop] = found[:, shared:].transpose(0, 1)
    return dq, dk, dv


def _attend_packed(q: Tensor, k: Tensor, v: Tensor, pack: Pack, form: Form) -> Tensor:
    """out (tokens, heads, dv) when several query heads read one kv head."""
    queries, keys, values = pack.queries(q), pack.keys(k), pack.keys(v)
    out = queries.new_empty(len(queries), v.shape[2])
    q_views, k_views = pack.query_views(queries), pack.key_views(keys)
    scratch = blocks.Scratch.packed(q_views, k_views, form, backward=False)
    groups = zip(q_views, k_views, pack.key_views(values), pack.query_views(out), strict=True)
    for one in groups:
        blocks.forward_(*one, scratch)
    return pack.of_queries(out)


def _packed_gradients(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, pack: Pack, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, in slots."""
    queries, keys, values = pack.queries(q), pack.keys(k), pack.keys(v)
    douts, dq = pack.gradients(dout), torch.empty_like(queries)
    dk, dv = torch.zeros_like(keys), torch.zeros_like(values)
    q_views, k_views = pack.query_views(queries), pack.key_views(keys)
    scratch = blocks.Scratch.packed(q_views, k_views, form, backward=True)
    inputs = zip(pack.query_views(douts), q_views, k_views, pack.key_views(values), strict=True)
    results = zip(pack.query_views(dq), pack.key_views(dk), pack.key_views(dv), strict=True)
    for given, into in zip(inputs, results, strict=True):
        blocks.backward_(*given, *into, scratch)
    return dq, dk, dv


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

    Under autocast the products are in its dtype, as in torch's own attention.
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


def _keys_seen(x: Tensor, segments: Segments, start: int, stop: int) -> Tensor:
    """The keys or values (kv_heads, tokens, d) that a span sees: the shared ones, then its own."""
    own, shared = x[:, start:stop], segments.before(start)
    return torch.cat([x[:, :shared], own], dim=1) if shared else own


def _make_form(segments: Segments, scale: float, window: int | None, softcap: float | None) -> Form:
    return Form.of(segments.longest, scale=scale, window=window, softcap=softcap)


def _heads_first(x: Tensor) -> Tensor:
    """(tokens, heads, d) -> (heads, tokens, d), as a view."""
    return x.transpose(0, 1)
