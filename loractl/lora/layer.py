"""LoRA on one bare layer: y = W x + s * B (A x), with A (r, d_in), B (d_out, r) and W frozen.

From "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, equation 3. The product
B A, as large as W, is never formed in training: B (A x) costs r (d_in + d_out) a token, not
d_in d_out. Merging and exporting see only `delta` and `merged_weight`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def delta(self) -> Tensor:
        """The update s * B A in float32, laid out as the layer's weight."""
        return (self.B.detach() @ self.A.detach()) * self.scale  # (d_out, d_in)

    def merged_weight(
        self, weight: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """W + s * B A, computed in float32 and rounded once, to `dtype` or to that of W.

        `weight` stands for the layer's own W when that has no values (meta).
        """
        W = (self.weight if weight is None else weight).detach()
        return (W.float() + self.delta().to(W.device)).to(dtype or W.dtype)


class LoraLinear(LoraLayer):
    """LoRA on nn.Linear: weight (d_out, d_in)."""

    kind = "linear"


class LoraConv1D(LoraLayer):
    """LoRA on GPT-2's Conv1D, a linear layer whose weight lies as (d_in, d_out)."""

    kind = "conv1d"

    def delta(self) -> Tensor:
        """The update as (d_in, d_out), like the weight of a Conv1D."""
        return super().delta().T


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

    def delta(self) -> Tensor:
        """The update as (vocabulary, width)."""
        return super().delta().T
