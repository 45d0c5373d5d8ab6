"""One layer of a Llama-like decoder, part by part, with forward and backward written out.

The layer computes the same as transformers' modules (`models/fast/read_layer.py` tells which ones
and reads them), with the same order of roundings; the gradients are those of its formulas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loractl.ops import pieces
from loractl.ops.attention.autograd import attention_backward, attention_forward
from loractl.ops.dropout import Mask
from loractl.ops.layer.description import GROUPS, Layer, Norm, Place
from loractl.ops.lora_linear import (
    Pair,
    Thin,
    factor_gradients,
    input_gradient,
    output_gradients,
    project,
    thin_of,
)


@dataclass
class _Kept:
    """What the forward pass keeps for the backward pass; every tensor has N rows."""

    rstd_in: Tensor
    q: Tensor  # (N, heads, head_dim), rotated
    k: Tensor
    v: Tensor
    q_raw: Tensor | None  # before their norms
    k_raw: Tensor | None
    q_rstd: Tensor | None
    k_rstd: Tensor | None
    thin_qkv: Tensor | None
    attended: Tensor  # (N, heads, head_dim)
    softmax: Tensor  # what the attention kernel needs again
    thin_o: Tensor | None
    o_raw: Tensor | None  # before its norm
    o_rstd: Tensor | None
    middle: Tensor  # (N, hidden): x + attention
    rstd_mlp: Tensor
    gate: Tensor  # (N, intermediate)
    up: Tensor
    thin_gate_up: Tensor | None
    thin_down: Tensor | None
    down_raw: Tensor | None
    down_rstd: Tensor | None


@dataclass(frozen=True)
class _Thins:
    qkv: Thin
    o: Thin
    gate_up: Thin
    down: Thin


def _norm_rows(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    return pieces.rms_norm(x, norm.weight, norm.eps, offset=norm.offset)


def _heads_normed(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    y, rstd = _norm_rows(x.reshape(-1, x.shape[-1]), norm)  # (N * heads, head_dim)
    return y.view(x.shape), rstd


def _add_scaled(x: Tensor, y: Tensor, factor: float) -> Tensor:
    """x + factor * y, rounding the product first as in transformers."""
    return x + y if factor == 1.0 else x + y * factor


def _layer_forward(x: Tensor, layer: Layer, thins: _Thins, place: Place) -> tuple[Tensor, _Kept]:
    """x (N, hidden) -> the layer's output (N, hidden), and what the backward pass needs."""
    shape = layer.shape
    n = x.shape[0]
    h, rstd_in = _norm_rows(x, layer.before_attention)
    (q, k, v), thin_qkv = project(h, [layer.q, layer.k, layer.v], thins.qkv)
    q = q.view(n, shape.heads, shape.head_dim)
    k = k.view(n, shape.kv_heads, shape.head_dim)
    v = v.view(n, shape.kv_heads, shape.head_dim)
    q_raw = k_raw = q_rstd = k_rstd = None
    if layer.q_norm is not None and layer.k_norm is not None:
        q_raw, k_raw = q, k
        q, q_rstd = _heads_normed(q, layer.q_norm)
        k, k_rstd = _heads_normed(k, layer.k_norm)
    if shape.rotary:
        pieces.rotary_(q, place.cos, place.sin)
        pieces.rotary_(k, place.cos, place.sin)
    attended, softmax = attention_forward(
        q, k, v, place.segments, scale=shape.scaling, window=shape.window, softcap=shape.softcap
    )
    (y,), thin_o = project(attended.view(n, -1), [layer.o], thins.o)
    o_raw = o_rstd = down_raw = down_rstd = None
    if layer.after_attention is not None:
        o_raw = y
        y, o_rstd = _norm_rows(y, layer.after_attention)
    middle = _add_scaled(x, y, shape.residual)  # (N, hidden)
    h, rstd_mlp = _norm_rows(middle, layer.before_mlp)
    (gate, up), thin_gate_up = project(h, [layer.gate, layer.up], thins.gate_up)
    inner = pieces.gated(gate, up, activation=shape.activation)  # (N, intermediate)
    (y,), thin_down = project(inner, [layer.down], thins.down)
    if layer.after_mlp is not None:
        down_raw = y
        y, down_rstd = _norm_rows(y, layer.after_mlp)
    kept = _Kept(
        rstd_in, q, k, v, q_raw, k_raw, q_rstd, k_rstd, thin_qkv, attended, softmax, thin_o,
        o_raw, o_rstd, middle, rstd_mlp, gate, up, thin_gate_up, thin_down, down_raw, down_rstd,
    )  # fmt: skip
    return _add_scaled(middle, y, shape.residual), kept


def _through_norm(dy: Tensor, x: Tensor, rstd: Tensor, norm: Norm) -> Tensor:
    """The gradient of a norm's input from that of its output."""
    dx = torch.zeros_like(x)
    pieces.rms_norm_backward_(dx, dy, x, rstd, norm.weight, offset=norm.offset)
    return dx


def _norm_again(x: Tensor, rstd: Tensor, norm: Norm) -> Tensor:
    return pieces.rms_norm_again(x, rstd, norm.weight, offset=norm.offset)


def _mlp_backward(
    dy: Tensor, layer: Layer, thins: _Thins, kept: _Kept
) -> tuple[Tensor, list[Pair]]:
    """From the gradient of the layer's output, that of `middle` and those of the MLP's factors."""
    d_out = dy if layer.shape.residual == 1.0 else dy * layer.shape.residual
    if layer.after_mlp is not None:
        assert kept.down_raw is not None and kept.down_rstd is not None
        d_out = _through_norm(d_out, kept.down_raw, kept.down_rstd, layer.after_mlp)
    u, dBs = output_gradients([d_out], thins.down, kept.thin_down)
    inner = input_gradient([d_out], [layer.down], thins.down, u)  # (N, intermediate)
    # Now gate and up become their own gradients, and `inner` becomes their product again.
    pieces.gated_backward_(inner, kept.gate, kept.up, activation=layer.shape.activation)
    down = factor_gradients(dBs, thins.down, u, inner)
    del inner
    both = [kept.gate, kept.up]
    u, dBs = output_gradients(both, thins.gate_up, kept.thin_gate_up)
    h = _norm_again(kept.middle, kept.rstd_mlp, layer.before_mlp)
    gate_up = factor_gradients(dBs, thins.gate_up, u, h)
    dh = input_gradient(both, [layer.gate, layer.up], thins.gate_up, u)  # (N, hidden)
    d_middle = dy.clone()
    norm = layer.before_mlp
    pieces.rms_norm_backward_(
        d_middle, dh, kept.middle, kept.rstd_mlp, norm.weight, offset=norm.offset
    )
    return d_middle, [*gate_up, *down]


def _attention_backward(
    d_middle: Tensor, layer: Layer, thins: _Thins, kept: _Kept, place: Place
) -> tuple[list[Tensor], list[Pair]]:
    """From the gradient of `middle`, those of q, k and v (N, d_out) and of the factors of o."""
    shape, n = layer.shape, d_middle.shape[0]
    d_out = d_middle if shape.residual == 1.0 else d_middle * shape.residual
    if layer.after_attention is not None:
        assert kept.o_raw is not None and kept.o_rstd is not None
        d_out = _through_norm(d_out, kept.o_raw, kept.o_rstd, layer.after_attention)
    u, dBs = output_gradients([d_out], thins.o, kept.thin_o)
    o = factor_gradients(dBs, thins.o, u, kept.attended.view(n, -1))
    d_attended = input_gradient([d_out], [layer.o], thins.o, u)
    dq, dk, dv = attention_backward(
        d_attended.view(kept.attended.shape), kept.q, kept.k, kept.v, kept.attended, kept.softmax,
        place.segments, scale=shape.scaling, window=shape.window, softcap=shape.softcap,
    )  # fmt: skip
    if shape.rotary:
        pieces.rotary_(dq, place.cos, place.sin, inverse=True)
        pieces.rotary_(dk, place.cos, place.sin, inverse=True)
    if layer.q_norm is not None and layer.k_norm is not None:
        assert kept.q_raw is not None and kept.q_rstd is not None
        assert kept.k_raw is not None and kept.k_rstd is not None
        dq = _through_heads(dq, kept.q_raw, kept.q_rstd, layer.q_norm)
        dk = _through_heads(dk, kept.k_raw, kept.k_rstd, layer.k_norm)
    return [d.reshape(n, -1) for d in (dq, dk, dv)], o


def _through_heads(dy: Tensor, x: Tensor, rstd: Tensor, norm: Norm) -> Tensor:
    width = x.shape[-1]
    return _through_norm(dy.reshape(-1, width), x.reshape(-1, width), rstd, norm).view(x.shape)


def _layer_backward(
    dy: Tensor, x: Tensor, layer: Layer, thins: _Thins, kept: _Kept, place: Place, *, to_input: bool
) -> tuple[Tensor | None, list[Pair]]:
    """From the gradient of the output, that of the input if wanted and of all factors in order."""
    dx, mlp = _mlp_backward(dy, layer, thins, kept)
    dqkv, o = _attention_backward(dx, layer, thins, kept, place)
    u, dBs = output_gradients(dqkv, thins.qkv, kept.thin_qkv)
    norm = layer.before_attention
    h = _norm_again(x, kept.rstd_in, norm)
    qkv = factor_gradients(dBs, thins.qkv, u, h)
    pairs = [*qkv, *o, *mlp]
    if not to_input:
        return None, pairs
    dh = input_gradient(dqkv, [layer.q, layer.k, layer.v], thins.qkv, u)
    pieces.rms_norm_backward_(dx, dh, x, kept.rstd_in, norm.weight, offset=norm.offset)
    return dx, pairs


@dataclass(frozen=True)
class Parts:
    """A layer for one batch, on any device, with any dtype and norms."""

    layer: Layer
    place: Place
    thins: _Thins

    @classmethod
    def of(
        cls, layer: Layer, place: Place, pairs: Sequence[Pair], masks: Sequence[Mask | None],
        dtype: torch.dtype,
    ) -> "Parts":  # fmt: skip
        groups = (thin_of(layer.linears[g], pairs[g], masks[g], dtype) for g in GROUPS)
        return cls(layer, place, _Thins(*groups))

    def forward(self, x: Tensor, *, keep: bool) -> tuple[Tensor, _Kept | None]:
        """x (N, hidden) -> the layer's output (N, hidden), and what `backward` needs."""
        y, kept = _layer_forward(x, self.layer, self.thins, self.place)
        return y, kept if keep else None

    def backward(
        self, dy: Tensor, x: Tensor, kept: _Kept, *, to_input: bool
    ) -> tuple[Tensor | None, list[Pair]]:
        """From the gradient of the output, that of the input if wanted and those of all factors in
        the order of the linears. Once per `forward`, since it overwrites `kept`."""
        return _layer_backward(dy, x, self.layer, self.thins, kept, self.place, to_input=to_input)
