"""Loss on held-out rows: one number over all trained tokens, and its parts for comparisons."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from loractl.evaluation.bootstrap import ratio
from loractl.records import Batch, HeldOutLoss

GROUPS = 200
"""Sums that an evaluation keeps at most: enough to estimate an error, and small in a file."""


class RowLoss(NamedTuple):
    """The loss of one row: of all its examples, where each of its answers is one."""

    total: float  # of its losses in nats, each times its weight
    weight: float  # of its trained tokens: their number if each weighs 1
    tokens: int  # trained

    def plus(self, other: "RowLoss") -> "RowLoss":
        """The loss of two examples of one row."""
        return RowLoss(
            self.total + other.total, self.weight + other.weight, self.tokens + other.tokens
        )


ROUNDING = 1e-6
"""Relative: weights that differ in their last digits alone give losses that differ by less."""


def is_below(one: HeldOutLoss, other: HeldOutLoss) -> bool:
    """Whether the first loss is lower beyond its error: the 95% interval of the paired difference
    excludes zero, and the losses differ by more than float32 rounds.

    A single group does not tell its error; then any lower loss counts.
    """
    if other.mean - one.mean <= ROUNDING * other.mean:
        return False
    return len(one.sums) == 1 or ratio(one.sums, one.counts, less=other.sums).high < 0


def held_out_loss(
    model: nn.Module,
    loss_of_rows: Callable[[Batch], Sequence[tuple[float, float]]],
    batches: Iterable[Batch],
    device: torch.device,
    gather: Callable[[Sequence[float]], list[float]] = list,
) -> HeldOutLoss:
    """The loss of a model without dropout or gradients; `loss_of_rows` gives (sum, count) by row.

    `gather` adds up the sums of all processes, if this is one of several.
    """
    was_training = model.training
    model.eval()
    sums, counts, row = [0.0] * GROUPS, [0.0] * GROUPS, 0
    with torch.no_grad():
        for batch in batches:
            for loss_sum, count in loss_of_rows(batch.to(device)):
                sums[row % GROUPS] += loss_sum
                counts[row % GROUPS] += count
                row += 1
    model.train(was_training)
    found = gather([*sums, *counts])
    pairs = [pair for pair in zip(found[:GROUPS], found[GROUPS:], strict=True) if pair[1]]
    return HeldOutLoss([a for a, _ in pairs], [b for _, b in pairs])


def row_losses(
    loss_of_examples: Callable[[Batch], Sequence[tuple[float, float]]],
    batches: Iterable[Batch],
    device: torch.device,
) -> dict[int | str, RowLoss]:
    """The loss of each row, keyed by its line: the sum over its examples.

    `loss_of_examples` returns (sum, weight) of each for a batch, in the order of its lines.
    """
    found: dict[int | str, RowLoss] = {}
    with torch.no_grad():
        for batch in batches:
            parts = loss_of_examples(batch.to(device))
            assert len(parts) == len(batch.lines), (len(parts), len(batch.lines))
            each = zip(batch.lines, parts, batch.example_counts, strict=True)
            for line, part, tokens in each:
                one = RowLoss(*part, tokens)
                found[line] = found[line].plus(one) if line in found else one
    return found
