"""The tokens that all examples of a batch begin with, as those of a system prompt, computed once.

A causal model makes the same of them in every example, since what follows is not seen. So one copy
serves all: the others attend to its keys and values, and its gradient is the sum of theirs. The
numbers are those of the whole batch, for less work.
"""

from dataclasses import replace

import torch
from torch import Tensor

from loractl.records import UNTRAINED, Batch

SHORTEST = 8
"""Fewer tokens are not worth the copies of keys and values that they cost."""


def shared_start(batch: Batch) -> int:
    """How many tokens all examples of a batch in one row begin with, and need but once; or 0.

    None of them is trained, nor does any predict a trained one, and each example goes on behind
    them. On a CPU alone: torch's kernels for CUDA know no such thing.
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
    """How many of the first columns of a table of bool hold in all rows."""
    return int(holds.all(0).long().cumprod(0).sum())


def once(batch: Batch, shared: int) -> tuple[Batch, Tensor]:
    """The batch with its first `shared` tokens in the first example alone, and which tokens those
    are of the (1, tokens) that it had."""
    positions = batch.position_ids[0]
    repeated = positions < shared
    repeated[:shared] = False
    kept = (~repeated).nonzero().flatten()
    ids, labels, positions = (
        one[:, kept] for one in (batch.input_ids, batch.labels, batch.position_ids)
    )
    return replace(batch, input_ids=ids, labels=labels, position_ids=positions, shared=shared), kept
