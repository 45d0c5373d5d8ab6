"""Initial values of an adapter: (rank, d_in, d_out) or (weight, rank, scale) -> A and B.

In the first kind A is random and B zero (the other way round for embeddings), so the model starts
out unchanged. In the second both are parts of the frozen weight, and the layer counts its update
from them (`LoraLayer.count_from_`).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Init = Callable[[int, int, int, torch.Generator], tuple[Tensor, Tensor]]
PartInit = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]


def default(rank: int, d_in: int, d_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A from U(-1/sqrt(d_in), 1/sqrt(d_in)), which is Kaiming-uniform with a = sqrt(5); B zero.

    The default of loralib and PEFT. Returns A (rank, d_in) and B (d_out, rank) in float32.
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
    """A zero, B from N(0, 1): for embeddings, whose A is looked up by id. Shapes as above."""
    B = torch.randn(d_out, rank, generator=generator, dtype=torch.float32)
    return torch.zeros(rank, d_in, dtype=torch.float32), B


def triplets(rank: int, d_in: int, d_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A and B from N(0, 0.02^2): for AdaLoRA, whose E starts at zero. Shapes as in `default`."""
    A = torch.randn(rank, d_in, generator=generator, dtype=torch.float32)
    B = torch.randn(d_out, rank, generator=generator, dtype=torch.float32)
    return A * 0.02, B * 0.02


def pissa(W: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """The largest singular directions of W: B = U_r sqrt(S_r / s), A = sqrt(S_r / s) V_r^T.

    PiSSA, arXiv 2404.02948, equations 2 and 3, with PEFT's division by the scale s, so that s B A
    is itself a part of W. W (d_out, d_in) -> A (rank, d_in) and B (d_out, rank) in float32.
    """
    U, S, Vh = torch.linalg.svd(W.float(), full_matrices=False)
    root = torch.sqrt(S[:rank] / scale)
    return root[:, None] * Vh[:rank], (U[:, :rank] * root).contiguous()


def olora(W: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """The first columns of W's QR: B = Q_r, A = R_r, so that B starts orthonormal.

    OLoRA, arXiv 2406.01775, as PEFT implements it: not divided by the scale. Shapes as in `pissa`.
    """
    Q, R = torch.linalg.qr(W.float())
    return R[:rank].contiguous(), Q[:, :rank].contiguous()


INITS: dict[str, Init] = {"default": default, "gaussian": gaussian}
PART_INITS: dict[str, PartInit] = {"pissa": pissa, "olora": olora}
"""Those that start from parts of the weight; their rank is at most that of the weight."""
