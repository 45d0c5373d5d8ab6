"""The output head and its cross-entropy in one pass, without ever materializing a batch's logits.

The vocabulary is the widest dimension of a small model: float32 `logsumexp` over 49k columns costs
more than both products of the head (450-610 us per token against 310, two Zen 4 cores). So logits
are computed in chunks of rows, turned into their own gradient in strips that fit the cache, and
multiplied back at once; only the gradient of the hidden states is kept for the backward pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loractl.ops import held_memory
from loractl.ops.chunks import STRIP_ROWS, chunk_rows
from loractl.ops.gemm import Term, products
from loractl.ops.own_rows import OwnRows
from loractl.ops.pieces import softmax_loss_

FLOAT16_FACTOR = 1024.0
"""Float16 loses values below 6e-8, so gradients of logits are multiplied by this before rounding,
which is undone in float32. The largest are then about 1024, and sums of them times weights stay
below 65504."""


@dataclass(frozen=True)
class Head:
    """softcap * tanh(scale * (W h + b) / softcap), or scale * (W h + b) without a cap.

    The cap comes after the scale: Gemma 2 caps the head's output, MuseSpark the scaled output.
    """

    weight: Tensor  # (vocabulary, hidden)
    bias: Tensor | None = None  # (vocabulary,)
    scale: float = 1.0
    softcap: float | None = None
    own: OwnRows | None = None  # rows trained in place of the weight's; then there is no bias

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of hidden states (..., hidden), as transformers computes them."""
        found = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.own is not None:
            rows = self.own.rows.to(found.dtype)
            own = torch.nn.functional.linear(hidden.to(found.dtype), rows)
            found = found.index_copy(-1, self.own.indices, own)
        found = found * self.scale if self.scale != 1 else found
        if self.softcap is None:
            return found
        return torch.tanh(found / self.softcap) * self.softcap


def head_loss(hidden: Tensor, head: Head, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of the cross-entropies in nats, each times its weight: a float32 scalar.

    hidden (n, hidden) in the dtype of the head's weight, targets (n,) ids, weights (n,) float32 or
    None for 1; n may be 0. The gradients of inputs that require one are computed along the way,
    none for weights; none under `no_grad`.
    """
    assert hidden.dtype == head.weight.dtype, (hidden.dtype, head.weight.dtype)
    given = (hidden, head.weight, head.bias, head.own.rows if head.own else None)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        loss: Tensor = _HeadLoss.apply(*given, targets, head, weights)  # type: ignore[no-untyped-call]
        return loss
    return _sum_weighted(head_losses(hidden, head, targets), weights)


def _sum_weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.sum() if weights is None else (losses * weights).sum()


@torch.no_grad()
def head_losses(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """The cross-entropy of each row in nats, (n,) float32; like `head_loss`, without gradients."""
    return _run_chunks(hidden, head, targets, _Gradients())


@dataclass(frozen=True)
class _Gradients:
    """Where gradients of the sum are accumulated; None where none is requested."""

    hidden: Tensor | None = None  # (n, hidden)
    weight: Tensor | None = None  # (vocabulary, hidden) float32
    bias: Tensor | None = None  # (vocabulary,) float32
    rows: Tensor | None = None  # (k, hidden) float32, of the head's own rows
    weights: Tensor | None = None  # (n,) of the rows in the sum; not yet applied to `hidden`

    @property
    def any(self) -> bool:
        return any(t is not None for t in (self.hidden, self.weight, self.bias, self.rows))

    def weights_of(self, rows: slice) -> Tensor | None:
        return None if self.weights is None else self.weights[rows]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor | None,
        targets: Tensor,
        head: Head,
        weights: Tensor | None,
    ) -> Tensor:
        of_hidden, of_weight, of_bias, of_rows = ctx.needs_input_grad[:4]
        # What FLOAT16_FACTOR saves would be lost again if it were undone in float16.
        exact = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        gradients = _Gradients(
            torch.empty_like(hidden, dtype=exact) if of_hidden else None,
            torch.zeros_like(weight, dtype=torch.float32) if of_weight else None,
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and of_bias else None,
            torch.zeros_like(rows) if rows is not None and of_rows else None,
            weights,
        )
        loss = _sum_weighted(_run_chunks(hidden, head, targets, gradients), weights)
        ctx.save_for_backward(gradients.hidden, weights)
        ctx.of_head = (gradients.weight, gradients.bias, gradients.rows)
        ctx.dtype = hidden.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.of_head is not None, "head_loss supports only one backward pass"
        (of_hidden, weights), (of_weight, of_bias, of_rows) = ctx.saved_tensors, ctx.of_head
        ctx.of_head = None  # so that the gradient of a weight does not exist twice
        if of_hidden is not None:
            # In float32: a GPU would round the factor, 1 / tokens per step, to bfloat16. It is
            # about 1 over the sum of the weights, so their product with it is within the range.
            factors = upstream if weights is None else (weights * upstream)[:, None]
            of_hidden = (of_hidden.float() * factors).to(ctx.dtype)
        if of_weight is not None:
            of_weight = of_weight.mul_(upstream).to(ctx.dtype)
        if of_bias is not None:
            of_bias = of_bias.mul_(upstream).to(ctx.dtype)
        if of_rows is not None:  # in float32, like the rows
            of_rows = of_rows.mul_(upstream)
        return of_hidden, of_weight, of_bias, of_rows, None, None, None


def _run_chunks(hidden: Tensor, head: Head, targets: Tensor, gradients: _Gradients) -> Tensor:
    """The loss of each row, chunk by chunk; writes or accumulates the requested gradients."""
    n, vocabulary = len(hidden), len(head.weight)
    losses = torch.empty(n, dtype=torch.float32, device=hidden.device)
    on_cpu = hidden.device.type == "cpu"
    rows = chunk_rows(n, vocabulary, hidden.element_size(), on_cpu=on_cpu)
    step = STRIP_ROWS if on_cpu else rows
    buffer = _logits_space(hidden, min(n, rows), vocabulary)  # reused by all chunks
    factor = FLOAT16_FACTOR / head.scale if hidden.dtype == torch.float16 else 1.0
    for start in range(0, n, rows):
        chunk = slice(start, start + rows)
        h = hidden[chunk]  # (rows, hidden)
        logits = buffer[: len(h)]  # (rows, vocabulary)
        products([Term(h, head.weight.T)], start=head.bias, out=logits)
        if head.own is not None:
            head.own.replace_(logits, h)
        for at in range(0, len(h), step):
            strip = slice(start + at, min(start + at + step, start + len(h)))
            losses[strip] = softmax_loss_(
                logits[at : at + step],
                targets[strip],
                scale=head.scale,
                softcap=head.softcap,
                gradient=gradients.any,
                factor=factor,
            )
        terms = [Term(logits, head.weight)]
        if head.own is not None and gradients.any:
            own = head.own.take_(logits)  # (rows, k)
            terms.append(Term(own, head.own.as_weight(own.dtype)))
            if gradients.rows is not None:
                inputs = _weighted(h.float(), gradients.weights_of(chunk))
                gradients.rows.addmm_(own.float().T, inputs, alpha=1 / factor)
        if gradients.hidden is not None:
            gradients.hidden[chunk] = products(terms)
            if factor != 1:
                gradients.hidden[chunk] /= factor
        _add_of_head_(gradients, logits, h, gradients.weights_of(chunk), factor)
    return losses


def _logits_space(like: Tensor, rows: int, vocabulary: int) -> Tensor:
    if like.device.type != "cpu":  # torch caches its memory itself
        return like.new_empty(rows, vocabulary)
    return held_memory.scratch("logits", rows * vocabulary, like.dtype).view(rows, vocabulary)


def _weighted(inputs: Tensor, weights: Tensor | None) -> Tensor:
    """Inputs (rows, hidden), each times its weight."""
    return inputs if weights is None else inputs * weights[:, None]


def _add_of_head_(
    gradients: _Gradients, of_logits: Tensor, h: Tensor, weights: Tensor | None, factor: float
) -> None:
    """Add a chunk's contribution to the gradients of weight and bias, in float32.

    A row's weight multiplies its hidden state, which is narrower than its logits.
    """
    # 16-bit values in strips, so that their float32 copies stay small.
    step = len(h) if h.dtype == torch.float32 else STRIP_ROWS
    for at in range(0, len(h), step):
        rows = slice(at, at + step)
        if gradients.weight is not None:
            inputs = _weighted(h[rows].float(), None if weights is None else weights[rows])
            gradients.weight.addmm_(of_logits[rows].float().T, inputs, alpha=1 / factor)
        if gradients.bias is not None:
            of_rows = of_logits[rows].float()  # (rows, vocabulary)
            found = of_rows.sum(dim=0) if weights is None else of_rows.T @ weights[rows]
            gradients.bias.add_(found, alpha=1 / factor)
