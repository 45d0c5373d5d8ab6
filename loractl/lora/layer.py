"""LoRA on one bare layer: y = W x + s * B (A x), with A (r, d_in), B (d_out, r) and W frozen.

From "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, equation 3. The product
B A, as large as W, is never formed in training: B (A x) costs r (d_in + d_out) a token, not
d_in d_out. Merging and exporting see only `delta` and `merged_weight`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIP = 1 << 22
"""Values of a weight that are merged at a time: 32 MiB in float64."""


class LoraLayer(nn.Module):
    """A frozen layer and its update. A and B rest in float32 and compute in their input's dtype.

    Subclasses say how A and B are applied, and how the update lies in the layer's own weight.
    """

    kind = ""

    def __init__(
        self, base: nn.Module, A: Tensor, B: Tensor, *, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        weight = base.weight
        assert isinstance(weight, Tensor)
        # Over a base without values (meta) A and B stay where they are: merging needs only B A.
        device = A.device if weight.is_meta else weight.device
        self.base = base
        self.A = nn.Parameter(A.to(device=device, dtype=torch.float32))  # (r, d_in)
        self.B = nn.Parameter(B.to(device=device, dtype=torch.float32))  # (d_out, r)
        self.scale = scale
        self.dropout = dropout
        self.enabled = True

    @property
    def weight(self) -> Tensor:
        """The frozen weight, under the name by which models look at their own layers."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.base, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: x (..., d_in) -> (..., d_out)."""
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        h = F.dropout(x, self.dropout, self.training)
        h = F.linear(h, self.A.to(x.dtype))  # (..., r)
        return torch.add(y, F.linear(h, self.B.to(x.dtype)), alpha=self.scale)

    def update_rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop of s * B A in float64, laid out as the layer's weight."""
        return self.B.detach()[start:stop].double() @ self.A.detach().double() * self.scale

    def delta(self) -> Tensor:
        """The update s * B A in float32, laid out as the layer's weight."""
        return torch.cat([self.update_rows(*ends).float() for ends in _strips(self.weight)])

    def merged_weight(
        self, weight: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """W + s * B A as the nearest float32, rounded once to `dtype` or to that of W.

        `weight` stands for the layer's own W when that has no values (meta). The sum is in float64,
        strip by strip: sums in float32 put up to 8e-4 of float16's values one step off.
        """
        W = (self.weight if weight is None else weight).detach()
        merged = torch.empty_like(W, dtype=dtype or W.dtype)
        for start, stop in _strips(W):
            exact = W[start:stop].double() + self.update_rows(start, stop).to(W.device)
            merged[start:stop] = exact.float().to(merged.dtype)
        return merged


def _strips(weight: Tensor) -> list[tuple[int, int]]:
    """Rows of a matrix in strips of at most STRIP values."""
    rows = max(1, STRIP // weight.shape[1])
    return [(start, start + rows) for start in range(0, weight.shape[0], rows)]


class LoraLinear(LoraLayer):
    """LoRA on nn.Linear: weight (d_out, d_in)."""

    kind = "linear"


class LoraConv1D(LoraLayer):
    """LoRA on GPT-2's Conv1D, a linear layer whose weight lies as (d_in, d_out)."""

    kind = "conv1d"

    def update_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the update as (d_in, d_out), like the weight of a Conv1D."""
        return _transposed_rows(self, start, stop)


class LoraEmbedding(LoraLayer):
    """LoRA on nn.Embedding: weight (vocabulary, width), A (r, vocabulary), B (width, r).

    Ids have no dropout. Some models (Gemma) multiply their embeddings by `embed_scale`, and the
    update with them.
    """

    kind = "embedding"

    @property
    def embed_scale(self) -> Tensor:
        """What the layer multiplies its rows by after looking them up, in the weight's dtype."""
        scale = getattr(self.base, "embed_scale", 1.0)
        return torch.as_tensor(scale, dtype=self.weight.dtype, device=self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Look up ids x (...) -> (..., width)."""
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        h = F.embedding(x, self.A.T.to(y.dtype))  # (..., r)
        update = F.linear(h, self.B.to(y.dtype)) * self.embed_scale
        return torch.add(y, update, alpha=self.scale)

    def update_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the update as (vocabulary, width)."""
        return _transposed_rows(self, start, stop)


def _transposed_rows(layer: LoraLayer, start: int, stop: int) -> Tensor:
    """Rows of s * (B A)^T in float64: for weights that lie as (d_in, d_out)."""
    return layer.A.detach()[:, start:stop].T.double() @ layer.B.detach().T.double() * layer.scale
