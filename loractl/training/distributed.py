"""What processes exchange. A single process exchanges nothing and skips torch.distributed."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from loractl.world import World

if TYPE_CHECKING:
    from torch import nn


def sum_over_ranks(world: World, values: Sequence[float]) -> list[float]:
    """Sum each value over all processes, in float64; every process gives equally many."""
    if world.size == 1:
        return list(values)
    import torch

    sums = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    found: list[float] = sums.tolist()
    return found


def sum_gradients_(world: World, parameters: Iterable["nn.Parameter"]) -> None:
    """Give every process the sums of all gradients, in one exchange for all parameters.

    A process whose rows do not reach a parameter adds nothing to it; a parameter that no process
    reaches has no gradient.
    """
    if world.size == 1:
        return
    import torch

    trained = list(parameters)
    reached = torch.tensor([float(one.grad is not None) for one in trained])
    torch.distributed.all_reduce(reached)
    given = [one for one, count in zip(trained, reached.tolist(), strict=True) if count]
    flat = torch.cat(
        [(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in given]
    )
    torch.distributed.all_reduce(flat)
    parts = torch.split(flat, [one.numel() for one in given])
    for one, part in zip(given, parts, strict=True):
        one.grad = part.view_as(one)
