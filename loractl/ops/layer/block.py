"""One layer of a Llama-like decoder as one autograd function.

Between forward and backward it keeps the layer's input, q, k and v, the attention's output, the sum
after attention, gate and up, and a few values per token; norms and the activation's product are
recomputed. With `checkpoint` it keeps only the input. The layer itself is computed part by part
(parts.py), or as a whole by layer.c (one_call.py) where possible.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loractl.ops.dropout import Mask
from loractl.ops.layer.description import Layer, Place
from loractl.ops.layer.one_call import Whole
from loractl.ops.layer.parts import Parts
from loractl.ops.lora_linear import masks_of


def _choose_way(
    x: Tensor, layer: Layer, place: Place, factors: Sequence[Tensor | None],
    masks: Sequence[Mask | None],
) -> Parts | Whole:  # fmt: skip
    pairs = list(zip(factors[::2], factors[1::2], strict=True))
    if not any(masks) and (whole := Whole.of(x, layer, place, pairs)) is not None:
        return whole
    return Parts.of(layer, place, pairs, masks, x.dtype)


def _await(layer: Layer) -> None:
    if layer.arrive is not None:
        layer.arrive()


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: Layer, place: Place, masks: Sequence[Mask | None],
        checkpoint: bool, *factors: Tensor | None,
    ) -> Tensor:  # fmt: skip
        _await(layer)
        chosen = _choose_way(x, layer, place, factors, masks)
        y, ctx.kept = chosen.forward(x, keep=not checkpoint)
        ctx.save_for_backward(x)
        ctx.chosen, ctx.layer = chosen, layer
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None
        _await(ctx.layer)
        if kept is None:
            _, kept = ctx.chosen.forward(x, keep=True)
        dx, pairs = ctx.chosen.backward(dy, x, kept, to_input=ctx.needs_input_grad[0])
        return dx, None, None, None, None, *(gradient for pair in pairs for gradient in pair)


def block(x: Tensor, layer: Layer, place: Place, *, checkpoint: bool = False) -> Tensor:
    """Apply a layer: x (N, hidden) -> (N, hidden), N = rows x length. Backward works only once."""
    factors: list[Tensor | None] = []
    for linear in layer.linears:
        factors += linear.factors() if linear.factors is not None else (None, None)
    grows = torch.is_grad_enabled() and (
        x.requires_grad or any(one is not None and one.requires_grad for one in factors)
    )
    masks = masks_of(layer.linears)
    if not grows:
        _await(layer)
        return _choose_way(x, layer, place, factors, masks).forward(x, keep=False)[0]
    y: Tensor = _Block.apply(x, layer, place, masks, checkpoint, *factors)  # type: ignore[no-untyped-call]
    return y
