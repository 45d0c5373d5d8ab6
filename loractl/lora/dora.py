"""DoRA: y = m (W x + s B A x) / ||W + s B A|| + bias, with one norm and one m per output.

From "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, equations 5 and 11: the norm
is over the inputs, is a constant in the backward pass (section 4.3), and m starts at ||W||. Bias
and dropout are handled as in PEFT.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from loractl.lora.dense import rows_of
from loractl.lora.layer import LoraConv1D, LoraEmbedding, LoraLayer, LoraLinear, Rows
from loractl.quant.linear import PackedLinear

_Seen = list[tuple[Tensor, int, int, torch.dtype, torch.device]]


class DoraLayer(LoraLayer):
    """Shared by the three kinds of layer: m (d_out,), in float32 like A and B, and the norm.

    While A and B have their initial values the output is bit for bit that of the base: m is the
    norm from the same computation, and what is added to the base's output is zero.
    """

    def __init__(
        self, base: nn.Module, A: Tensor, B: Tensor, *, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__(base, A, B, scale=scale, dropout=dropout)
        self._seen: _Seen = []
        self._norm: Tensor | None = None
        self._squares: Tensor | None = None
        hollow = self.is_hollow  # m is read from a file later
        start = torch.zeros_like(self.B[:, 0]) if hollow else self._root(self._square_sums())
        self.m = nn.Parameter(start.detach().clone())  # (d_out,)

    def forget_(self) -> None:
        self._seen, self._norm, self._squares = [], None, None

    def adapt(self, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output from its input and the base's output y = base(x)."""
        h = self.dropped(x)
        # With dropout, everything DoRA adds to the base's output comes from the dropped input.
        plain = y if h is x else self.base(h)
        whole = self.added(h, plain)  # W x + s B A x + bias
        alone = whole if self.bias is None else whole - self.bias
        # g (Wx + u) = Wx + u + (g - 1)(Wx + u): exact at the start, where g is 1 and u is 0, and
        # a g near 1 keeps its digits in bfloat16.
        less_one = (self.gain() - 1).to(y.dtype)
        return torch.addcmul(whole if h is x else self.added(h, y), less_one, alone)

    def added(self, h: Tensor, plain: Tensor) -> Tensor:
        """plain + s B A h."""
        return plain + self.update(h) * self.scale

    def gain(self) -> Tensor:
        """m / ||W + s B A|| (d_out,), the norm detached; 1 where the norm is zero."""
        norm = self.norm()
        positive = norm > 0
        ratio = self.m / torch.where(positive, norm, torch.ones_like(norm))
        return torch.where(positive, ratio, torch.ones_like(norm))

    @torch.no_grad()
    def norm(self) -> Tensor:
        """||W + s B A|| over the inputs (d_out,), cached until A, B or their start change."""
        now: _Seen = [
            (tensor, tensor._version, tensor.data_ptr(), tensor.dtype, tensor.device)
            for tensor in (self.A, self.B, self.A0, self.B0, self._weight_seen())
            if tensor is not None
        ]
        same = len(now) == len(self._seen) and all(
            new[0] is old[0] and new[1:] == old[1:]
            for new, old in zip(now, self._seen, strict=True)
        )
        if self._norm is None or not same:
            self._norm, self._seen = self._thin_norm(), now
        return self._norm

    def _weight_seen(self) -> Tensor:
        """A tensor that changes with the frozen weight."""
        return self.base.packed.codes if isinstance(self.base, PackedLinear) else self.weight

    def _thin_norm(self) -> Tensor:
        """The root of ||W||^2 + 2 s <W, B A> + s^2 ||B A||^2, from products as thin as A and B.

        W + s B A is never formed. Each term has a relative error of about 1e-7 in float32, so the
        norm is exact to 1e-6 unless the update cancels more than nine tenths of W.
        """
        A, B = self.factors()
        cross = (self._weight_times(A.T) * B).sum(dim=1)
        own = ((B @ (A @ A.T)) * B).sum(dim=1)
        return self._root(self._square_sums() + 2 * self.scale * cross + self.scale**2 * own)

    @staticmethod
    def _root(squares: Tensor) -> Tensor:
        return squares.clamp_min(0).sqrt()

    def _weight_times(self, right: Tensor) -> Tensor:
        """W @ right in the dtype of `right`: (d_in, k) -> (d_out, k), W converted in strips."""
        if not isinstance(self.base, PackedLinear) and self.placed[0] == right.dtype:
            return self.weight.T @ right if self.transposed else self.weight @ right
        parts = ((a, b, rows.to(right.dtype)) for a, b, rows in rows_of(self.base))
        if not self.transposed:
            return torch.cat([rows @ right for _, _, rows in parts])
        product = right.new_zeros(self.d_out, right.shape[1])
        for start, stop, rows in parts:
            product += rows.T @ right[start:stop]
        return product

    def _square_sums(self) -> Tensor:
        """||W||^2 over the inputs (d_out,), computed once per dtype and device of A."""
        known = self._squares
        if known is None or (known.dtype, known.device) != (self.A.dtype, self.A.device):
            dim = 0 if self.transposed else 1
            parts = (rows.to(self.A.dtype) for _, _, rows in rows_of(self.base))
            sums = [rows.square().sum(dim=dim) for rows in parts]
            known = torch.stack(sums).sum(dim=0) if self.transposed else torch.cat(sums)
            self._squares = known
        return known

    def delta(self) -> Tensor:
        """m (W + s B A) / ||W + s B A|| - W in float32, laid out as the layer's weight."""
        W = self.dense_weight().detach()
        return torch.cat([(rows - W[a:b].double()).float() for a, b, rows in self.merged_rows(W)])

    def merged_rows(self, W: Tensor | Rows) -> Iterator[tuple[int, int, Tensor]]:
        """m (W + s B A) / ||W + s B A|| in float64, strip by strip, the norm in float64 too."""
        dim = 0 if self.transposed else 1
        sums = [rows.square().sum(dim=dim) for _, _, rows in super().merged_rows(W)]
        norm = (torch.stack(sums).sum(dim=0) if self.transposed else torch.cat(sums)).sqrt()
        m = self.m.detach().double().to(norm.device)
        gain = torch.where(norm > 0, m / norm.clamp_min(1e-300), 1.0)
        for start, stop, rows in super().merged_rows(W):
            yield start, stop, rows * (gain if self.transposed else gain[start:stop, None])


class DoraLinear(DoraLayer, LoraLinear):
    """DoRA on nn.Linear: m has one value per row of the weight."""

    def added(self, h: Tensor, plain: Tensor) -> Tensor:
        return self.with_update(h, plain)


class DoraConv1D(DoraLayer, LoraConv1D):
    """DoRA on GPT-2's Conv1D: m has one value per column of the weight."""

    def added(self, h: Tensor, plain: Tensor) -> Tensor:
        return self.with_update(h, plain)


class DoraEmbedding(DoraLayer, LoraEmbedding):
    """DoRA on nn.Embedding: m has one value per embedding dimension; the norm is over all ids.

    `embed_scale` multiplies the output, as in PEFT, and does not enter the norm.
    """
