"""Loss on held-out rows: one number over all trained tokens."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from loractl.records import Batch


def mean_loss(
    model: nn.Module,
    loss: Callable[[Batch], tuple[Tensor, float]],
    batches: Iterable[Batch],
    device: torch.device,
    gather: Callable[[Sequence[float]], list[float]] = list,
) -> float:
    """Mean cross-entropy in nats per trained token: sum over sum, no dropout, no gradients.

    `gather` adds up the sums of all processes, if this is one of several.
    """
    was_training = model.training
    model.eval()
    loss_sum, n_tokens = 0.0, 0.0
    with torch.no_grad():
        for batch in batches:
            batch_sum, n = loss(batch.to(device))
            loss_sum += float(batch_sum)
            n_tokens += n
    model.train(was_training)
    total_sum, total = gather([loss_sum, n_tokens])
    return total_sum / total


def row_losses(
    loss_of_rows: Callable[[Batch], Sequence[tuple[float, int]]],
    batches: Iterable[Batch],
    device: torch.device,
) -> dict[int | str, tuple[float, int]]:
    """(sum of the losses, their number) of each row, keyed by its line.

    `loss_of_rows` returns them for a batch, row by row; each batch row is one example.
    """
    found: dict[int | str, tuple[float, int]] = {}
    with torch.no_grad():
        for batch in batches:
            parts = loss_of_rows(batch.to(device))
            assert len(parts) == len(batch.lines), "a row of a batch holds several examples"
            found |= dict(zip(batch.lines, parts, strict=True))
    return found
