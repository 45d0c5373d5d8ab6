"""What processes exchange. With one of them nothing is, and torch.distributed is not imported."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from loractl.world import World

if TYPE_CHECKING:
    from torch import nn


def sum_over_ranks(world: World, values: Sequence[float]) -> list[float]:
    """The sums of each value over all processes, added in float64; each gives as many."""
    if world.size == 1:
        return list(values)
    import torch

    sums = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    found: list[float] = sums.tolist()
    return found


def sum_gradients_(world: World, parameters: Iterable["nn.Parameter"]) -> None:
    """Give every process the sums of all their gradients. Only one process can train as yet: more
    would each go their own way, so that they are refused."""
    if world.size > 1:
        raise NotImplementedError(f"training in {world.size} processes is not available yet")
