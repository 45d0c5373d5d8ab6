"""Batch -> (loss_sum, n_tokens): divided once, by whoever knows all the tokens of a step."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from loractl.models.forward import trained_logits
from loractl.records import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def loss_sum(
    model: "PreTrainedModel", batch: Batch, *, autocast: torch.dtype | None = None
) -> tuple[Tensor, int]:
    """Sum of the cross-entropies of the trained tokens in nats, as a float32 scalar, and their
    number.

    `autocast` is the dtype of the products where the weights themselves rest in float32. The
    softmax is in float32 whatever the model computes in.
    """
    device = batch.input_ids.device.type
    with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
        logits, targets = trained_logits(model, batch)
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    return total, targets.numel()
