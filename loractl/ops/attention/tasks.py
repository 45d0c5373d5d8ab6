"""Attention on the CPU in C: one example and one kv head are a task for one thread.

On the processors that gemm.c is for, attention.c takes half the time of torch's products or less
(scripts/LOG.md). If there are so few tasks that threads would wait for each other, as with one long
row and many threads, torch's products are used.
"""

import ctypes
import heapq

import torch
from torch import Tensor

from loractl.ops import gemm, held_memory, native
from loractl.ops.attention.blocks import Form
from loractl.ops.native import POINTER, REAL, SIZE
from loractl.ops.segments import Segments

BUSY = 0.6
"""With two of three threads busy it is still faster."""


class _View(ctypes.Structure):
    _fields_ = (("at", POINTER), ("row", SIZE), ("head", SIZE))


class _Job(ctypes.Structure):
    """`Job` of attention.c."""

    _fields_ = (
        *((name, _View) for name in ("q", "k", "v", "out", "dout", "dq", "dk", "dv")),
        *((name, POINTER) for name in ("logsumexp", "dk_shared", "dv_shared", "spans")),
        *((name, SIZE) for name in ("count", "tokens", "heads", "kv_heads", "d", "e", "shared")),
        ("scale", REAL),
    )


def task_fits(q: Tensor, k: Tensor, v: Tensor, segments: Segments, form: Form) -> bool:
    """Whether attention.c can be used; shapes as in `attention_forward`."""
    if any(not x.is_cpu or x.dtype != q.dtype or x.stride(-1) != 1 for x in (q, k, v)):
        return False
    return serves_well(segments, k.shape[1], form, q.dtype)


def serves_well(segments: Segments, kv_heads: int, form: Form, dtype: torch.dtype) -> bool:
    """The same for any CPU tensors of these sizes."""
    if not gemm.serves_here(dtype) or form.window is not None or form.softcap is not None:
        return False
    if form.scale <= 0 or native.compiled(dtype) is None:
        return False
    return busy_share(segments, kv_heads, torch.get_num_threads()) >= BUSY


def busy_share(segments: Segments, kv_heads: int, threads: int) -> float:
    """The share of time that threads are busy if each takes the next task when idle; cached."""
    key = ("busy", kv_heads, threads)
    if key not in segments.kept:
        costs = sorted(((stop - start) ** 2 for start, stop in segments.spans), reverse=True)
        until = [0] * threads
        for cost in (cost for cost in costs for _ in range(kv_heads)):
            heapq.heapreplace(until, until[0] + cost)
        segments.kept[key] = sum(until) / (threads * max(until))
    found: float = segments.kept[key]
    return found


def forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, form: Form
) -> tuple[Tensor, Tensor]:
    """out (tokens, heads, dv) and the logsumexp of each query's scores (heads, tokens), float32."""
    out = q.new_empty(*q.shape[:2], v.shape[2])
    logsumexp = torch.empty(q.shape[1], q.shape[0])
    job = _make_job(q, k, v, out, logsumexp, segments, form)
    _run_job(job, segments, q.dtype)
    return out, logsumexp


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    segments: Segments,
    form: Form,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, each contiguous; `out` and `logsumexp` are from `forward`."""
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    job = _make_job(q, k, v, out, logsumexp, segments, form)
    job.dout, job.dq, job.dk, job.dv = (_view_of(x) for x in (dout, dq, dk, dv))
    shared = [
        torch.zeros(len(segments.spans), k.shape[1], segments.shared, x.shape[2]) for x in (k, v)
    ]
    job.dk_shared, job.dv_shared = (x.data_ptr() for x in shared)
    _run_job(job, segments, q.dtype, is_backward=True)
    if segments.shared:
        for dx, found in zip((dk, dv), shared, strict=True):
            dx[: segments.shared] += found.sum(0).transpose(0, 1)  # (shared, kv_heads, width)
    return dq, dk, dv


def _view_of(x: Tensor) -> _View:
    return _View(x.data_ptr(), x.stride(0), x.stride(1))


def _make_job(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    segments: Segments,
    form: Form,
) -> _Job:
    tokens, heads, d = q.shape
    assert k.shape == (tokens, k.shape[1], d) and v.shape[:2] == k.shape[:2], (k.shape, v.shape)
    assert heads % k.shape[1] == 0 and tokens == segments.rows * segments.length
    job = _Job()
    job.q, job.k, job.v, job.out = (_view_of(x) for x in (q, k, v, out))
    job.logsumexp, job.spans = logsumexp.data_ptr(), spans_of(segments).data_ptr()
    job.count, job.tokens, job.heads, job.kv_heads = len(segments.spans), tokens, heads, k.shape[1]
    job.d, job.e, job.shared, job.scale = d, v.shape[2], segments.shared, form.scale
    return job


def spans_of(segments: Segments) -> Tensor:
    """(spans, 2), longest first, so that no thread is left with it at the end; cached."""
    if "spans" not in segments.kept:
        ordered = sorted(segments.spans, key=lambda span: span[0] - span[1])
        segments.kept["spans"] = torch.tensor(ordered, dtype=torch.int64)
    found: Tensor = segments.kept["spans"]
    return found


def _run_job(
    job: _Job, segments: Segments, dtype: torch.dtype, *, is_backward: bool = False
) -> None:
    library, threads = native.compiled(dtype), torch.get_num_threads()
    assert library is not None
    row = library.attention_space(segments.longest, job.d, job.e)
    space = held_memory.scratch("step", threads * row).data_ptr()
    library.attention(ctypes.addressof(job), is_backward, space, row, threads)
