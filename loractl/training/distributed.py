"""What processes exchange. With one of them nothing is, and torch.distributed is not imported."""

from collections.abc import Sequence

from loractl.world import World


def sum_over_ranks(world: World, values: Sequence[float]) -> list[float]:
    """The sums of each value over all processes, added in float64; each gives as many."""
    if world.size == 1:
        return list(values)
    import torch

    sums = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    found: list[float] = sums.tolist()
    return found
