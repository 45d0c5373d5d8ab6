"""The memory-bound pieces of a transformer layer, forward and backward, for code that writes out
the gradient of a whole layer: there is no autograd here, and norm weights get no gradient.

Each function calls its loop in kernels.c if native.py has a library for the tensors, and is
otherwise the plain torch formula (CUDA, other dtypes, mixed dtypes, no compiler): the same numbers
up to rounding. Everything is computed in float32 and rounded where transformers rounds.

A name ending in _ writes into its arguments. Rows may be views of a wider buffer: strides are
arbitrary except the last, which must be 1 for the fast path. `out` may be one of the inputs.
"""

from ctypes import CDLL
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from loractl.ops import native

Activation = Literal["silu", "gelu_tanh", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh", "gelu")
"""In the order used in kernels.c."""


def _library_for(first: Tensor, *others: Tensor | None) -> CDLL | None:
    """kernels.c, if all are on the CPU, of one dtype, and contiguous within a row."""
    dtype = first.dtype
    for x in (first, *others):
        if x is not None and (x.dtype != dtype or not x.is_cpu or x.stride(-1) != 1):
            return None
    return native.compiled(dtype)


def _head_strides(x: Tensor) -> tuple[int, int, int]:
    """Address and two strides of x (N, h) or (N, heads, h)."""
    assert x.dim() in (2, 3), x.shape
    return x.data_ptr(), x.stride(0), x.stride(1) if x.dim() == 3 else 0


def _matrix_place(x: Tensor) -> tuple[int, int]:
    return x.data_ptr(), x.stride(0)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale each row to a root mean square of 1, then by the weight.

    x (N, h), or (N, heads, h) for the norms of queries and keys; weight (h,), of x's dtype.
    Returns y like x, and rstd (N,) or (N, heads), float32: 1 / sqrt(mean(x^2) + eps). With `offset`
    0 the row is rounded to its dtype before it is multiplied by the weight (transformers'
    LlamaRMSNorm); otherwise the weight is offset + weight and all is float32 until y (GemmaRMSNorm:
    1).
    """
    if found := _library_for(x, weight, out):
        rstd = torch.empty(x.shape[:-1], dtype=torch.float32)
        return _rms_norm(found, x, rstd, weight, offset=offset, out=out, eps=eps), rstd
    rstd = torch.rsqrt(x.float().pow(2).mean(-1) + eps)
    return rms_norm_again(x, rstd, weight, offset=offset, out=out), rstd


def rms_norm_again(
    x: Tensor, rstd: Tensor, weight: Tensor, *, offset: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """Recompute y of `rms_norm` bit for bit from the rstd that it returned."""
    if found := _library_for(x, weight, out):
        return _rms_norm(found, x, rstd, weight, offset=offset, out=out, eps=None)
    normed = x.float() * rstd.unsqueeze(-1)  # (N, h)
    y = normed.to(x.dtype) * weight if offset == 0.0 else normed * (offset + weight.float())
    return _copy_into(out, y.to(x.dtype))


def _rms_norm(
    found: CDLL,
    x: Tensor,
    rstd: Tensor,
    weight: Tensor,
    *,
    offset: float,
    out: Tensor | None,
    eps: float | None,
) -> Tensor:
    """Without eps, rstd is read instead of written."""
    y = _out_like(x, out)
    assert weight.shape == x.shape[-1:], (weight.shape, x.shape)
    assert rstd.shape == x.shape[:-1] and rstd.is_contiguous(), (rstd.shape, x.shape)
    n, heads, h = (x.shape[0], x.shape[1] if x.dim() == 3 else 1, x.shape[-1])
    found.rms_norm(
        *(*_head_strides(x), weight.data_ptr(), *_head_strides(y), rstd.data_ptr(), n, heads, h),
        *(eps or 0.0, offset, eps is None, torch.get_num_threads()),
    )
    return y


def rms_norm_backward_(
    dx: Tensor, dy: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, *, offset: float = 0.0
) -> None:
    """Add to dx the gradient that flows through the norm of x when its output has the gradient dy.

    dx, dy, x (N, h) or (N, heads, h); rstd is from `rms_norm`. dx already holds the residual's
    gradient, or zeros. With v = dy * weight: dx += rstd * (v - x * rstd^2 * mean(v * x)).
    """
    assert dx.shape == dy.shape == x.shape, (dx.shape, dy.shape, x.shape)
    if found := _library_for(dx, dy, x, weight):
        assert weight.shape == x.shape[-1:], (weight.shape, x.shape)
        assert rstd.shape == x.shape[:-1] and rstd.is_contiguous(), (rstd.shape, x.shape)
        n, heads, h = (x.shape[0], x.shape[1] if x.dim() == 3 else 1, x.shape[-1])
        found.rms_norm_backward(
            *(
                *_head_strides(dx),
                *_head_strides(dy),
                *_head_strides(x),
                rstd.data_ptr(),
                weight.data_ptr(),
            ),
            *(n, heads, h, offset, torch.get_num_threads()),
        )
        return
    v = dy.float() * (offset + weight.float())  # (N, h)
    s = rstd.unsqueeze(-1)  # (N, 1)
    share = (v * x.float()).mean(-1, keepdim=True) * s * s
    dx.copy_(dx.float() + s * (v - x.float() * share))


def rotary_(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> None:
    """Rotate the first `rot` numbers of each head by its row's angles, pairing the two halves.

    x (N, heads, d); cos, sin (N, rot), rot <= d and even, as transformers' rotary embeddings return
    them: x * cos + rotate_half(x) * sin, as in its apply_rotary_pos_emb. `inverse` applies the
    transpose, which maps the gradient of the rotated x to that of x.
    """
    (n, heads, width), half = x.shape, cos.shape[1] // 2
    assert cos.shape == sin.shape == (n, 2 * half), (cos.shape, sin.shape, x.shape)
    assert 2 * half <= width, (cos.shape, x.shape)
    cos, sin = cos.float(), sin.float()  # exact, and a no-op if the caller keeps float32
    if cos.stride(1) == sin.stride(1) == 1 and cos.is_cpu and (found := _library_for(x)):
        found.rotary(
            *(*_head_strides(x), *_matrix_place(cos), *_matrix_place(sin), n, heads, half),
            *(inverse, torch.get_num_threads()),
        )
        return
    turned = x[..., : 2 * half].float()
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (N, 1, rot)
    if inverse:
        a, b = (turned * sin).chunk(2, dim=-1)
        other = torch.cat((b, -a), dim=-1)
    else:
        a, b = turned.chunk(2, dim=-1)
        other = torch.cat((-b, a), dim=-1) * sin
    x[..., : 2 * half] = (turned * cos + other).to(x.dtype)


def gated(gate: Tensor, up: Tensor, *, activation: Activation, out: Tensor | None = None) -> Tensor:
    """act(gate) * up (N, m); act(gate) is rounded to the dtype first, as in transformers."""
    assert gate.shape == up.shape, (gate.shape, up.shape)
    if found := _library_for(gate, up, out):
        y, (n, m) = _out_like(gate, out), gate.shape
        found.gated(
            *(*_matrix_place(gate), *_matrix_place(up), *_matrix_place(y), n, m),
            *(ACTIVATIONS.index(activation), torch.get_num_threads()),
        )
        return y
    return _copy_into(out, _activation_curve(gate.float(), activation).to(gate.dtype) * up)


def gated_backward_(dact: Tensor, gate: Tensor, up: Tensor, *, activation: Activation) -> None:
    """From dact, the gradient of act(gate) * up, compute the gradients of gate and up in place.

    All (N, m). gate <- its gradient, up <- its gradient, and dact <- act(gate) * up, bit for bit as
    in `gated`: the gradient of the following layer needs it, so it need not have been kept.
    """
    assert dact.shape == gate.shape == up.shape, (dact.shape, gate.shape, up.shape)
    if found := _library_for(dact, gate, up):
        n, m = gate.shape
        found.gated_backward(
            *(*_matrix_place(dact), *_matrix_place(gate), *_matrix_place(up), n, m),
            *(ACTIVATIONS.index(activation), torch.get_num_threads()),
        )
        return
    act = _activation_curve(gate.float(), activation).to(gate.dtype)
    d_act = dact.float() * up.float()
    d_up, product = dact * act, act * up
    gate.copy_(_curve_backward(d_act, gate.float(), activation))
    up.copy_(d_up)
    dact.copy_(product)


def activated(x: Tensor, *, activation: Activation, out: Tensor | None = None) -> Tensor:
    """act(x) of x (N, m)."""
    if found := _library_for(x, out):
        y, (n, m) = _out_like(x, out), x.shape
        found.activated(
            *(*_matrix_place(x), *_matrix_place(y), n, m),
            *(ACTIVATIONS.index(activation), torch.get_num_threads()),
        )
        return y
    return _copy_into(out, _activation_curve(x, activation))


def activated_backward(
    dy: Tensor, x: Tensor, *, activation: Activation, out: Tensor | None = None
) -> Tensor:
    """The gradient of x (N, m) from that of act(x); `out` may be either input."""
    assert dy.shape == x.shape, (dy.shape, x.shape)
    if found := _library_for(dy, x, out):
        dx, (n, m) = _out_like(x, out), x.shape
        found.activated_backward(
            *(*_matrix_place(dy), *_matrix_place(x), *_matrix_place(dx), n, m),
            *(ACTIVATIONS.index(activation), torch.get_num_threads()),
        )
        return dx
    return _copy_into(out, _curve_backward(dy, x, activation))


def _activation_curve(g: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return F.silu(g)
    return F.gelu(g, approximate="tanh" if activation == "gelu_tanh" else "none")


def _curve_backward(d: Tensor, g: Tensor, activation: Activation) -> Tensor:
    dg: Tensor
    if activation == "silu":
        dg = torch.ops.aten.silu_backward(d, g)
    else:
        form = "tanh" if activation == "gelu_tanh" else "none"
        dg = torch.ops.aten.gelu_backward(d, g, approximate=form)
    return dg


def softmax_loss_(
    logits: Tensor,
    targets: Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    gradient: bool = True,
    factor: float = 1.0,
) -> Tensor:
    """The cross-entropy of each row; overwrites the logits with its gradient.

    logits (n, V); targets (n,) int64 in 0..V-1 (only trained rows are passed). Returns losses (n,)
    float32, in nats. The softmax is over scale * logits (Cohere, Granite) or, with `softcap`, over
    cap * tanh(scale * logits / cap) (Gemma 2). With `gradient`, logits become
    factor * d(loss) / d(logits); without it they are unchanged.
    """
    n, vocabulary = logits.shape
    assert targets.shape == (n,) and targets.dtype == torch.int64, (targets.shape, targets.dtype)
    if n and targets.is_cpu:  # a device would be waited for
        least, greatest = (int(end) for end in targets.aminmax())
        assert least >= 0 and greatest < vocabulary, (least, greatest, vocabulary)
    if targets.is_cpu and (found := _library_for(logits)):
        losses = torch.empty(n, dtype=torch.float32)
        targets = targets.contiguous()
        found.softmax_loss(
            *(*_matrix_place(logits), targets.data_ptr(), losses.data_ptr(), n, vocabulary),
            *(scale, softcap or 0.0, factor, gradient, torch.get_num_threads()),
        )
        return losses
    x, slope = logits, None
    if scale != 1:
        x = logits.float() * scale
    if softcap is not None:
        capped = (x.float() / softcap).tanh_()
        slope = capped.square().neg_().add_(1) if gradient else None  # derivative of tanh
        x = capped.mul_(softcap)
    chosen = targets[:, None]  # (n, 1)
    # Each pass over n x V values costs time on a device: 16-bit ones are widened on the way.
    peak = x.amax(dim=1, keepdim=True).float()  # (n, 1)
    exponentials = torch.sub(x, peak).exp_()  # (n, V) float32
    total = exponentials.sum(dim=1, keepdim=True)
    of_target = x.gather(1, chosen).float() - peak
    losses = (total.log() - of_target).squeeze(1)
    if gradient:
        less_one = of_target.exp() / total - 1
        if slope is not None:
            exponentials.mul_(slope)
            less_one *= slope.gather(1, chosen)
        torch.mul(exponentials, factor * scale / total, out=logits)
        logits.scatter_(1, chosen, (less_one * (factor * scale)).to(logits.dtype))
    return losses


def _out_like(x: Tensor, out: Tensor | None) -> Tensor:
    """`out`, or a new contiguous tensor of x's shape."""
    if out is None:
        return torch.empty(x.shape, dtype=x.dtype)
    assert out.shape == x.shape, (out.shape, x.shape)
    return out


def _copy_into(out: Tensor | None, y: Tensor) -> Tensor:
    return y if out is None else out.copy_(y)
