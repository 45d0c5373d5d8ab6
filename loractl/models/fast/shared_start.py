"""Compute the tokens that all examples of a batch begin with, such as a system prompt, only once.

A causal model computes the same values for them in every example, since it does not see what
follows. One copy therefore serves all: the other examples attend to its keys and values, and its
gradient is the sum of theirs. The results are those of the full batch, for less work.
"""

from dataclasses import replace

import torch
from torch import Tensor

from loractl.records import UNTRAINED, Batch

SHORTEST = 8
"""Fewer tokens are not worth the copies of keys and values they cost."""


def shared_start(batch: Batch) -> int:
    """How many leading tokens all examples of a one-row batch share and need only once, or 0.

    None of them is trained or predicts a trained token, and each example continues after them. CPU
    only: torch's CUDA kernels do not support this.
    """
    ids, labels = batch.input_ids, batch.labels
    if ids.device.type != "cpu" or len(ids) != 1 or batch.shared:
        return 0
    starts = (batch.position_ids[0] == 0).nonzero().flatten()
    stops = torch.cat([starts[1:], torch.tensor([ids.shape[1]])])
    shortest = int((stops - starts).min())
    if len(starts) < 2 or shortest <= SHORTEST:
        return 0
    places = starts[:, None] + torch.arange(shortest)  # (examples, shortest)
    alike = _leading(ids[0, places] == ids[0, places[0]])
    untrained = _leading(labels[0, places] == UNTRAINED)
    length = min(alike, untrained - 1, shortest - 1)
    return length if length >= SHORTEST else 0


def _leading(holds: Tensor) -> int:
    """How many leading columns of a bool table are true in every row."""
    return int(holds.all(0).long().cumprod(0).sum())


def once(batch: Batch, shared: int) -> tuple[Batch, Tensor]:
    """The batch with its first `shared` tokens in the first example only, and the indices of the
    remaining tokens among the original (1, tokens)."""
    positions = batch.position_ids[0]
    repeated = positions < shared
    repeated[:shared] = False
    kept = (~repeated).nonzero().flatten()
    return replace(batch.with_each(lambda one: one[:, kept]), shared=shared), kept
