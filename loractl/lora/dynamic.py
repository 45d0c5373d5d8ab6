"""Change ranks during training, without scores: grow by directions that do nothing yet, shrink by
the truncated SVD of the update. The optimizer's moments are carried over.

Growing leaves the function unchanged. Shrinking to k keeps the best update of rank k (Eckart and
Young). A layer keeps its scale s, so a change of rank does not change the size of the update.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NOISE = 1e-6
"""Share of the largest singular value below which a direction is float32 rounding."""

Fresh = Callable[[int], tuple[Tensor, Tensor]]
"""k -> A (k, d_in) and B (d_out, k) with a zero product, drawn by the layer's init."""


Pair = tuple[Tensor, Tensor]
"""One tensor for A (r, d_in), one for B (d_out, r)."""


@dataclass(frozen=True)
class Moments:
    """An optimizer's moments for A and B: averages of g and of g^2."""

    averages: tuple[Pair, ...]
    squares: tuple[Pair, ...]


@dataclass(frozen=True)
class Resized:
    """The factors at the new rank, and their moments if there were any."""

    A: Tensor
    B: Tensor
    moments: Moments | None


def resized(A: Tensor, B: Tensor, rank: int, fresh: Fresh, moments: Moments | None) -> Resized:
    """A (r, d_in) and B (d_out, r) at another rank, with B A kept or cut to its best approximation.

    Missing directions are drawn by `fresh`. Their first moments are zero; their second moments are
    the mean over the old directions: zeros would make the first step about three times as long as
    the learning rate says (0.1 g over sqrt(0.001 g^2)).
    """
    old = moments
    if rank < A.shape[0]:
        A, B, moments = _cut(A, B, rank, moments)
    missing = rank - A.shape[0]
    if missing == 0:
        return Resized(A, B, moments)
    new_A, new_B = (one.to(A) for one in fresh(missing))
    if moments is not None and old is not None:
        zeros = torch.zeros_like(new_A), torch.zeros_like(new_B)
        moments = Moments(
            tuple(_joined(pair, zeros) for pair in moments.averages),
            tuple(
                _joined(pair, _typical(before, missing))
                for pair, before in zip(moments.squares, old.squares, strict=True)
            ),
        )
    return Resized(torch.cat([A, new_A]), torch.cat([B, new_B], dim=1), moments)


def _joined(pair: Pair, more: Pair) -> Pair:
    """Append directions."""
    return torch.cat([pair[0], more[0]]), torch.cat([pair[1], more[1]], dim=1)


def _typical(pair: Pair, count: int) -> Pair:
    """The mean of all directions, repeated `count` times."""
    A, B = pair
    return (
        A.mean(dim=0, keepdim=True).expand(count, -1),
        B.mean(dim=1, keepdim=True).expand(-1, count),
    )


def _cut(
    A: Tensor, B: Tensor, rank: int, moments: Moments | None
) -> tuple[Tensor, Tensor, Moments | None]:
    """The at most `rank` largest directions of B A, split evenly between A and B.

    With B = Q_B R_B, A^T = Q_A R_A and R_B R_A^T = U S V^T, the new factors are B X and Y A for
    X = R_A^T V S^-1/2 and Y = S^-1/2 U^T R_B. By the chain rule the gradient of Y A is X^T times
    that of A, and that of B X is that of B times Y^T; averages of gradients transform the same way,
    and averages of squares by the squares of X and Y, as if the entries were independent.
    """
    _, R_B = torch.linalg.qr(B.double())  # (k_B, r)
    _, R_A = torch.linalg.qr(A.double().T)  # (k_A, r)
    U, sigma, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    kept = min(rank, int((sigma > NOISE * sigma.max()).sum()))
    root = sigma[:kept].sqrt()
    X = R_A.T @ Vh[:kept].T / root  # (r, kept)
    Y = (U[:, :kept] / root).T @ R_B  # (kept, r)
    new_A, new_B = (Y @ A.double()).to(A.dtype), (B.double() @ X).to(B.dtype)
    if moments is None:
        return new_A, new_B, None
    X, Y = X.to(A.dtype), Y.to(A.dtype)
    averages = tuple((X.T @ A, B @ Y.T) for A, B in moments.averages)
    squares = tuple((X.T.square() @ A, B @ Y.T.square()) for A, B in moments.squares)
    return new_A, new_B, Moments(averages, squares)


def set_values_(parameter: nn.Parameter, values: Tensor) -> None:
    """Give a parameter new values, possibly of another shape; its gradient is dropped."""
    parameter.grad = None
    parameter.data = values.to(parameter, copy=True).contiguous()
    count_versions_([parameter])


def count_versions_(parameters: Iterable[nn.Parameter]) -> None:
    """Tell autograd that the values of parameters have changed.

    Fused optimizers, compiled code and `.data` write to them unnoticed; DoRA caches a norm for as
    long as the versions of A and B stay the same.
    """
    torch.autograd.graph.increment_version(list(parameters))
