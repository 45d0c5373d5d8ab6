"""Analyze a low-rank update: its singular values, how many of them matter, and how it relates to
another update. Everything comes from the thin factors; nothing as large as the weight is formed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NOISE = 1e-14
"""Share of the energy that float32 factors cannot represent: (1e-7)^2 of the largest value."""


@dataclass(frozen=True)
class Factors:
    """The update s * B A of one module: A (r, d_in), B (d_out, r)."""

    A: Tensor
    B: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def product(self) -> Tensor:
        """s * B A in float64, (d_out, d_in): as large as the weight."""
        return self.B.double() @ self.A.double() * self.scale


def svd(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD of s * B A in float64: U (d_out, k), sigma (k), Vh (k, d_in), k at most r.

    B = Q_B R_B and A^T = Q_A R_A reduce it to the SVD of the r x r matrix s R_B R_A^T.
    """
    Q_B, R_B = torch.linalg.qr(factors.B.double())  # (d_out, k_B), (k_B, r)
    Q_A, R_A = torch.linalg.qr(factors.A.double().T)  # (d_in, k_A), (k_A, r)
    U, sigma, Vh = torch.linalg.svd(factors.scale * R_B @ R_A.T, full_matrices=False)
    return Q_B @ U, sigma, Vh @ Q_A.T


def energy_by_rank(sigma: Tensor) -> Tensor:
    """Share of the squared Frobenius norm in the first 1, 2, ... values; zeros if that is zero."""
    energy = sigma.double().square().cumsum(0)
    return energy / energy[-1] if float(energy[-1]) > 0 else torch.zeros_like(energy)


def lost_energy(sigma: Tensor, rank: int) -> float:
    """Share of the energy beyond the first `rank` values, summed from the small end."""
    squares = sigma.double().square()
    total = float(squares.sum())
    return float(squares[rank:].flip(0).sum()) / total if total > 0 else 0.0


def rank_keeping(sigma: Tensor, energy: float) -> int:
    """The smallest rank, from 1, that keeps this share of the squared singular values."""
    squares = sigma.double().square()
    allowed = (1 - energy + NOISE) * float(squares.sum())
    tails = squares.flip(0).cumsum(0).flip(0)  # tails[k]: energy of ranks from k + 1 on
    return max(1, int((tails > allowed).sum()))


def effective_rank(sigma: Tensor) -> float:
    """exp of the entropy of sigma / sum(sigma): between 1 and the rank; 0 for a zero update.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007, definition 1.
    """
    total = float(sigma.sum())
    if total <= 0:
        return 0.0
    shares = sigma.double() / total
    return math.exp(float(torch.special.entr(shares).sum()))


def norm(factors: Factors) -> float:
    """|s B A|, Frobenius, without the product."""
    return float(torch.linalg.vector_norm(svd(factors)[1]))


def distance(one: Factors, other: Factors) -> float:
    """|dW1 - dW2|, Frobenius: the norm of the update [s1 B1, -s2 B2] [A1; A2]."""
    A = torch.cat([one.A.double(), other.A.double()])
    B = torch.cat([one.B.double() * one.scale, other.B.double() * -other.scale], dim=1)
    return norm(Factors(A, B))


def cosine(one: Factors, other: Factors) -> float | None:
    """<dW1, dW2> / (|dW1| |dW2|), None if one is zero.

    <B1 A1, B2 A2> = sum of (B1^T B2) * (A1 A2^T), which is r1 x r2.
    """

    def inner(x: Factors, y: Factors) -> float:
        B, A = x.B.double().T @ y.B.double(), x.A.double() @ y.A.double().T
        return float((B * A).sum()) * x.scale * y.scale

    size = math.sqrt(max(0.0, inner(one, one)) * max(0.0, inner(other, other)))
    return inner(one, other) / size if size > 0 else None


def subspaces(factors: Factors) -> tuple[Tensor, Tensor]:
    """Right singular vectors as columns (d_in, k): those of A, and those of the update s * B A.

    Directions with a zero singular value are arbitrary and left out.
    """
    _, sigma_A, of_A = torch.linalg.svd(factors.A.double(), full_matrices=False)
    _, sigma, of_update = svd(factors)
    return _with_weight(of_A, sigma_A), _with_weight(of_update, sigma)


def _with_weight(Vh: Tensor, sigma: Tensor) -> Tensor:
    return Vh[sigma > math.sqrt(NOISE) * sigma.max()].T


def similarity(U1: Tensor, U2: Tensor) -> Tensor:
    """phi(i, j) = |U1_i^T U2_j|_F^2 / min(i, j) for all i and j from 1, (k1, k2), from 0 to 1.

    LoRA, arXiv 2106.09685, section 7.2, equation 4; U_i is the first i columns of U (d, k). For
    random subspaces in d dimensions it is about max(i, j) / d.
    """
    overlap = (U1.T @ U2).square().cumsum(0).cumsum(1)  # (k1, k2)
    i = torch.arange(1, U1.shape[1] + 1).unsqueeze(1)
    j = torch.arange(1, U2.shape[1] + 1).unsqueeze(0)
    return overlap / torch.minimum(i, j)
