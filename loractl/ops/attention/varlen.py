"""The same attention through torch's flash kernel for CUDA: all examples in one launch.

This was written without access to a GPU and has not been run.
"""

import torch
from torch import Tensor

from loractl.ops.attention.blocks import Form
from loractl.ops.segments import Segments


def kernel_fits(q: Tensor, v: Tensor, form: Form) -> bool:
    """Whether the kernel supports these: half precision, Ampere or later, no cap on the scores.

    It requires one width for q, k and v, a multiple of 8 up to 256.
    """
    width = q.shape[2]
    return (
        q.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
        and q.dtype in (torch.float16, torch.bfloat16)
        and form.softcap is None
        and v.shape[2] == width <= 256
        and width % 8 == 0
    )


def forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, form: Form
) -> tuple[Tensor, Tensor]:
    """out (tokens, heads, d) and its logsumexp (heads, tokens) in float32."""
    offsets, longest = segments.offsets(q.device), segments.longest
    left, right, causal = _window_sides(form)
    out, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, offsets, offsets, longest, longest,
        0.0, causal, False,  # dropout, causal, no debug mask
        scale=form.scale, window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return out, logsumexp


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor,
    segments: Segments, form: Form,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, from the results of `forward`."""
    offsets, longest = segments.offsets(q.device), segments.longest
    left, right, causal = _window_sides(form)
    # The state of the random generator, which only dropout reads; varlen_attn passes zeros too.
    unused = torch.zeros(2, dtype=torch.uint64, device=q.device)
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        dout.contiguous(), q, k, v, out, logsumexp, offsets, offsets, longest, longest,
        0.0, causal, unused, torch.empty(0, device=q.device),
        scale=form.scale, window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return dq, dk, dv


def _window_sides(form: Form) -> tuple[int, int, bool]:
    """(tokens seen to the left, to the right, causal); -1 means unbounded, as in varlen_attn."""
    return (-1, 0, True) if form.window is None else (form.window - 1, 0, False)
