"""Causal attention through plain matrix products, one block of queries at a time.

Short examples are faster this way than in torch's fused kernel, and a sliding window or a cap on
the scores costs next to nothing. The query heads of a group are adjacent rows, so keys and values
are never repeated: q is (matrices, tokens, group, d), k and v are (matrices, before + tokens, d),
of which the first `before` belong to tokens without a query here. A matrix is one kv head of one
example; the examples of a call have equal length.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loractl.ops.chunks import query_rows


def block_of(dtype: torch.dtype) -> int:
    """Queries per block."""
    return query_rows(dtype.itemsize)


@dataclass(frozen=True)
class Form:
    """The formula: softmax(cap(scale * q k')) v; a token sees `window` tokens, including itself."""

    scale: float
    window: int | None = None
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap) (Gemma 2)

    @classmethod
    def of(cls, longest: int, *, scale: float, window: int | None, softcap: float | None) -> "Form":
        """For examples of at most `longest` tokens: a window that hides nothing is dropped."""
        return cls(scale, None if window is None or window >= longest else window, softcap)


@dataclass(frozen=True)
class Scratch:
    """Buffers and masks shared by the examples of one call."""

    form: Form
    buffers: Tensor  # (2 or 3, values of the largest block)
    product: Tensor | None = None  # size of the largest; None: written directly
    biases: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @staticmethod
    def packed(
        queries: Sequence[Tensor], keys: Sequence[Tensor], form: Form, *, backward: bool
    ) -> "Scratch":
        """For calls with each of `queries` and `keys`, which are laid out head by head."""
        size = 0
        for q, k in zip(queries, keys, strict=True):
            matrices, tokens, group, _ = q.shape
            block = min(block_of(q.dtype), tokens)
            widest = k.shape[1] if form.window is None else min(k.shape[1], form.window + block - 1)
            size = max(size, matrices * block * group * widest)
        return Scratch(form, queries[0].new_empty(_count_buffers(form, backward), size))

    @staticmethod
    def of(q: Tensor, longest: int, form: Form, *, width: int, backward: bool) -> "Scratch":
        """For q (heads, all tokens, 1, d) whose longest example has `longest` tokens, and v of
        width `width`."""
        heads, _, _, d = q.shape
        block = min(block_of(q.dtype), longest)
        widest = longest if form.window is None else min(longest, form.window + block - 1)
        buffers = q.new_empty(_count_buffers(form, backward), heads * block * widest)
        product = None
        if q.is_cpu and q.dtype == torch.float32:
            product = q.new_empty(heads * max(block, widest) * max(d, width))
        return Scratch(form, buffers, product)

    def take(self, q: Tensor, width: int) -> list[Tensor]:
        """The buffers in the shape of the scores of q (matrices, rows, d) against `width` keys."""
        shape = (q.shape[0], q.shape[1], width)
        return [buffer[: math.prod(shape)].view(shape) for buffer in self.buffers]

    def multiply_(
        self, out: Tensor, a: Tensor, b: Tensor, *, alpha: float = 1.0, beta: float = 1.0
    ) -> None:
        """out <- beta out + alpha a b, for a (matrices, rows, n) and b (matrices, n, columns).

        When writing into a part of a tensor, torch multiplies head by head. Single heads are so
        small that two threads wait for each other: forward and backward of 1,024 tokens in examples
        of about 200, 12 heads of 64, took 36 to 39 ms on two AVX2 cores, and 29 to 30 with an
        intermediate product. With groups of three heads, which are packed, or with one thread, it
        made no difference; bfloat16 would be rounded twice.
        """
        if self.product is None:
            out.baddbmm_(a, b, beta=beta, alpha=alpha)
            return
        product = self.product[: out.numel()].view(out.shape)
        torch.bmm(a, b, out=product)
        if beta == 0:
            torch.mul(product, alpha, out=out)
        else:
            out.add_(product, alpha=alpha)

    def bias(self, queries: int, before: int) -> Tensor:
        """0 where a query sees a key and -inf elsewhere, (queries, 1, before + queries).

        The last keys are the queries' own tokens; `before` others precede them.
        """
        if (queries, before) not in self.biases:
            buffer, window = self.buffers, self.form.window
            query = torch.arange(before, before + queries, device=buffer.device)
            back = query[:, None] - torch.arange(before + queries, device=buffer.device)
            hidden = back < 0 if window is None else (back < 0) | (back >= window)
            bias = buffer.new_zeros(hidden.shape).masked_fill_(hidden, -math.inf)
            self.biases[queries, before] = bias[:, None]
        return self.biases[queries, before]


def _count_buffers(form: Form, backward: bool) -> int:
    """Buffers: scores, their gradients and, with a cap, its slope."""
    return 1 + backward + (backward and form.softcap is not None)


def forward_(q: Tensor, k: Tensor, v: Tensor, out: Tensor, scratch: Scratch) -> None:
    """Fill `out` (matrices, tokens, group, width of v)."""
    for start, stop, seen in query_blocks(q, k, scratch.form.window):
        queries, keys = _rows_between(q, start, stop), k[:, seen]
        scores = scratch.take(queries, keys.shape[1])[0]
        _write_scores_(scores, queries, keys, scratch)
        _hide_unseen_(scores, stop - start, scratch)
        torch.softmax(scores, -1, out=scores)  # float32 inside, whatever its input
        scratch.multiply_(_rows_between(out, start, stop), scores, v[:, seen], beta=0)


def backward_(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    scratch: Scratch,
) -> None:  # fmt: skip
    """Fill dq and add to dk and dv; the probabilities are recomputed."""
    form = scratch.form
    for start, stop, seen in query_blocks(q, k, form.window):
        queries, keys = _rows_between(q, start, stop), k[:, seen]
        douts, values = _rows_between(dout, start, stop), v[:, seen]
        p, ds, *rest = scratch.take(queries, keys.shape[1])  # (matrices, rows, keys)
        _write_scores_(p, queries, keys, scratch)
        if form.softcap is not None:
            torch.div(p, form.softcap, out=rest[0])  # the tanh
        _hide_unseen_(p, stop - start, scratch)
        torch.softmax(p, -1, out=p)
        scratch.multiply_(dv[:, seen], p.transpose(1, 2), douts)
        torch.bmm(douts, values.transpose(1, 2), out=ds)
        # p * (ds - the sum over keys of p * ds): the only fused kernel for it.
        torch.ops.aten._softmax_backward_data.out(ds, p, -1, p.dtype, grad_input=ds)
        if form.softcap is not None:
            ds.mul_(rest[0].square_().neg_().add_(1))  # the derivative of tanh
        scratch.multiply_(_rows_between(dq, start, stop), ds, keys, beta=0, alpha=form.scale)
        scratch.multiply_(dk[:, seen], ds.transpose(1, 2), queries, alpha=form.scale)


def query_blocks(q: Tensor, k: Tensor, window: int | None) -> Iterator[tuple[int, int, slice]]:
    """(start, stop, seen): queries from start to stop see no keys outside `seen`."""
    tokens, block = q.shape[1], block_of(q.dtype)
    before = k.shape[1] - tokens
    for start in range(0, tokens, block):
        stop = min(start + block, tokens)
        first = 0 if window is None else max(0, before + start - window + 1)
        yield start, stop, slice(first, before + stop)


def _rows_between(x: Tensor, start: int, stop: int) -> Tensor:
    """(matrices, tokens, group, d) -> (matrices, (stop - start) * group, d), as a view."""
    matrices, _, group, width = x.shape
    return x[:, start:stop].view(matrices, (stop - start) * group, width)


def _write_scores_(out: Tensor, queries: Tensor, keys: Tensor, scratch: Scratch) -> None:
    """Scaled scores (matrices, rows, keys), capped if the form has a cap."""
    scale, cap = scratch.form.scale, scratch.form.softcap
    if cap is None:
        out.baddbmm_(queries, keys.transpose(1, 2), beta=0, alpha=scale)
    else:
        out.baddbmm_(queries, keys.transpose(1, 2), beta=0, alpha=scale / cap).tanh_().mul_(cap)


def _hide_unseen_(scores: Tensor, queries: int, scratch: Scratch) -> None:
    """Set scores to -inf where a query (row // group) must not see a key."""
    width = scores.shape[2]
    before = 0 if scratch.form.window is None else width - queries
    if queries == 1 and before == 0:
        return  # all keys are before it
    whole = scores.view(scores.shape[0], queries, -1, width)  # (matrices, queries, group, keys)
    whole[..., width - queries - before :].add_(scratch.bias(queries, before))
