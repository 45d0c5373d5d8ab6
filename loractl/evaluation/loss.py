"""Loss on held-out rows: one number over all their trained tokens."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from loractl.records import Batch


def mean_loss(
    model: nn.Module,
    loss: Callable[[Batch], tuple[Tensor, int]],
    batches: Iterable[Batch],
    device: torch.device,
) -> float:
    """Mean cross-entropy in nats a trained token: sum over sum, dropout off, no gradients kept."""
    was_training = model.training
    model.eval()
    loss_sum, n_tokens = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            batch_sum, n = loss(batch.to(device))
            loss_sum += float(batch_sum)
            n_tokens += n
    model.train(was_training)
    return loss_sum / n_tokens
