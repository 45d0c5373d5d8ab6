"""Where an adapter starts: (rank, d_in, d_out) -> A and B.

A is random and B zero (for embeddings the other way round), so that nothing changes at first.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Init = Callable[[int, int, int, torch.Generator], tuple[Tensor, Tensor]]


def default(rank: int, d_in: int, d_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A from U(-1/sqrt(d_in), 1/sqrt(d_in)), which is Kaiming-uniform with a = sqrt(5); B zero.

    The start of loralib and of PEFT. Returns A (rank, d_in) and B (d_out, rank) in float32.
    """
    A = torch.rand(rank, d_in, generator=generator, dtype=torch.float32)
    return (A * 2 - 1) / math.sqrt(d_in), torch.zeros(d_out, rank, dtype=torch.float32)


def gaussian(rank: int, d_in: int, d_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A from N(0, 1/rank^2), B zero: PEFT's "gaussian". Shapes as in `default`."""
    A = torch.randn(rank, d_in, generator=generator, dtype=torch.float32)
    return A / rank, torch.zeros(d_out, rank, dtype=torch.float32)


def embedding(
    rank: int, d_in: int, d_out: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A zero, B from N(0, 1): for embeddings, where A is looked up by id. Shapes as above."""
    B = torch.randn(d_out, rank, generator=generator, dtype=torch.float32)
    return torch.zeros(rank, d_in, dtype=torch.float32), B


INITS: dict[str, Init] = {"default": default, "gaussian": gaussian}
