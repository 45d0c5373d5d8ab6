"""Rows of an output head that are trained while its weight stays frozen, for the fused loss.

A row takes the place of the frozen one: its logits replace those of the frozen weight, so their
gradient belongs to the row alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OwnRows:
    """Trained rows (k, hidden) in float32 and their places (k,) among those of a head's weight."""

    rows: Tensor
    indices: Tensor

    def as_weight(self, dtype: torch.dtype) -> Tensor:
        """The rows in the dtype of the products, without a gradient."""
        return self.rows.detach().to(dtype)

    def replace_(self, logits: Tensor, h: Tensor) -> None:
        """Put the products h (n, hidden) with these rows into logits (n, vocabulary)."""
        logits.index_copy_(1, self.indices, h @ self.as_weight(h.dtype).T)

    def take_(self, of_logits: Tensor) -> Tensor:
        """Take the gradients of the rows' logits (n, k) out of those of all logits."""
        taken = of_logits.index_select(1, self.indices)
        of_logits.index_fill_(1, self.indices, 0.0)
        return taken
