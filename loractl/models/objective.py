"""Batch -> (loss_sum, weight), divided once by the caller that knows all tokens of a step. Or the
loss of each token."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from loractl.models.forward import hidden_states, trained_logits, trained_rows, trained_weights
from loractl.models.head import head_of
from loractl.models.proving_run import ProvingRun
from loractl.ops.cross_entropy import Head, head_loss, head_losses
from loractl.records import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HiddenStates(Protocol):
    """Another way to compute `hidden_states`, which may rearrange a batch."""

    @property
    def goes_together(self) -> bool:
        """Whether all batches of a step are computed together."""

    def together(self, batches: Sequence[Batch]) -> list[tuple[Tensor, Batch]]:
        """The hidden states of batches, and each batch as it was laid out for them."""


class TokenLoss:
    """The loss of `sft`: the weighted sum of the cross-entropies of a batch's trained tokens and
    the sum of their weights, as in `loss_sum`, but without ever materializing all logits.

    `autocast` is the dtype of the products when the weights themselves are in float32. `trunk` is
    another way to compute `hidden_states`, which may rearrange the batch. The head is determined
    once, on `run`: if it is not a plain one, or under autocast, `loss_sum` does the work.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        autocast: torch.dtype | None = None,
        trunk: HiddenStates | None = None,
        run: ProvingRun | None = None,
    ) -> None:
        self.model, self.autocast, self.trunk = model, autocast, trunk
        self.head = head_of(model, run) if autocast is None else None

    def count(self, batch: Batch) -> float:
        """The divisor of a batch's sum, known before it is computed: the weight of its trained
        tokens, or their number where each weighs 1."""
        return batch.weight

    def __call__(self, batch: Batch) -> tuple[Tensor, float]:
        if self.head is None:
            return loss_sum(self.model, batch, autocast=self.autocast)
        rows, targets = _inputs_of(self.head, *self._hidden([batch])[0])
        weights = trained_weights(batch)  # the trunk may move tokens, but keeps their order
        return head_loss(rows, self.head, targets, weights), self.count(batch)

    def groups(self, window: Sequence[Batch]) -> list[list[Batch]]:
        """The batches of a step, in groups that are computed together."""
        joined = self.head is not None and self.trunk is not None and self.trunk.goes_together
        return [list(window)] if joined else [[batch] for batch in window]

    def sums(self, group: Sequence[Batch]) -> list[Tensor]:
        """The loss sum of each batch of a group, from one pass through the layers.

        The last batch comes first, as in the layers.
        """
        if self.head is None or len(group) == 1:
            return [self(batch)[0] for batch in group]
        found = []
        for laid, batch in reversed(list(zip(self._hidden(group), group, strict=True))):
            rows, targets = _inputs_of(self.head, *laid)
            found.append(head_loss(rows, self.head, targets, trained_weights(batch)))
        return found[::-1]

    def each(self, batch: Batch) -> Tensor:
        """The cross-entropy of each trained token in nats, (n,) float32: row by row, in order.
        Weights are not applied."""
        with torch.no_grad():
            if self.head is None:
                return losses(self.model, batch, autocast=self.autocast)
            rows, targets = _inputs_of(self.head, *self._hidden([batch])[0])
        return head_losses(rows, self.head, targets)

    def of_rows(self, batch: Batch) -> list[tuple[float, float]]:
        """(weighted sum of the cross-entropies in nats, sum of the weights) of each row of a batch;
        without weights the latter is the number of trained tokens."""
        return self._of_parts(batch, batch.row_counts)

    def of_examples(self, batch: Batch) -> list[tuple[float, float]]:
        """The same for each example, in the order of the batch's `lines`."""
        return self._of_parts(batch, batch.example_counts)

    def _of_parts(self, batch: Batch, sizes: list[int]) -> list[tuple[float, float]]:
        parts = torch.split(self.each(batch).cpu().double(), sizes)
        if (weights := trained_weights(batch.on_host)) is None:
            return [(float(part.sum()), len(part)) for part in parts]
        pairs = zip(parts, torch.split(weights.double(), sizes), strict=True)
        return [(float((part * own).sum()), float(own.sum())) for part, own in pairs]

    def _hidden(self, batches: Sequence[Batch]) -> list[tuple[Tensor, Batch]]:
        """The hidden states of batches, and each batch as it was laid out for them."""
        if self.trunk is not None:
            return self.trunk.together(batches)
        return [(hidden_states(self.model, batch), batch) for batch in batches]


def _inputs_of(head: Head, hidden: Tensor, laid: Batch) -> tuple[Tensor, Tensor]:
    """The inputs of the head, (n, hidden) in its dtype, and the target ids, (n,)."""
    rows, targets = trained_rows(hidden, laid)
    # Mamba's hidden states may be in float32 before a 16-bit head.
    return rows.to(head.weight.dtype), targets


def loss_sum(
    model: "PreTrainedModel", batch: Batch, *, autocast: torch.dtype | None = None
) -> tuple[Tensor, float]:
    """Weighted sum of the cross-entropies of the trained tokens in nats, as a float32 scalar, and
    the sum of their weights: the plain form, from all their logits.

    `autocast` is the dtype of the products when the weights themselves are in float32. The softmax
    is in float32 whatever the model computes in.
    """
    found, weights = losses(model, batch, autocast=autocast), trained_weights(batch)
    total = found.sum() if weights is None else (found * weights).sum()
    return total, batch.weight


def losses(
    model: "PreTrainedModel", batch: Batch, *, autocast: torch.dtype | None = None
) -> Tensor:
    """Like `loss_sum`, but the cross-entropy of each trained token, (n,) float32, unweighted."""
    device = batch.input_ids.device.type
    with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
        logits, targets = trained_logits(model, batch)
    return F.cross_entropy(logits.float(), targets, reduction="none")


BUILDERS = {"sft": TokenLoss}
"""The loss of each objective of config/objectives."""
