"""A rank that changes while training goes on, without scores: larger by directions that do nothing
yet, smaller by the truncated SVD of the update. The sums that an optimizer keeps follow.

Growing leaves the function as it is. Shrinking to k leaves the best update of rank k (Eckart and
Young). A layer keeps its scale s, so that a change of rank is no change of size.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NOISE = 1e-6
"""Share of the largest singular value below which a direction is float32 rounding."""

Fresh = Callable[[int], tuple[Tensor, Tensor]]
"""k -> A (k, d_in) and B (d_out, k) whose product is zero, as the init of the layer draws them."""


Pair = tuple[Tensor, Tensor]
"""Of A (r, d_in) and of B (d_out, r)."""


@dataclass(frozen=True)
class Moments:
    """What an optimizer keeps of the gradients of A and B: averages of g, and of g^2."""

    averages: tuple[Pair, ...]
    squares: tuple[Pair, ...]


@dataclass(frozen=True)
class Resized:
    """The factors at the new rank, and their moments where there were any."""

    A: Tensor
    B: Tensor
    moments: Moments | None


def resized(A: Tensor, B: Tensor, rank: int, fresh: Fresh, moments: Moments | None) -> Resized:
    """A (r, d_in) and B (d_out, r) at another rank, with the product B A kept or cut to its best.

    Directions that the product does not have are drawn by `fresh`. Their first moments are zero;
    their second ones are the mean of the old directions': zeros there would make their first step
    about three times as long as the rate says (0.1 g over sqrt(0.001 g^2)).
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
    """Directions beside others."""
    return torch.cat([pair[0], more[0]]), torch.cat([pair[1], more[1]], dim=1)


def _typical(pair: Pair, count: int) -> Pair:
    """The mean of all directions, so many times."""
    A, B = pair
    return (
        A.mean(dim=0, keepdim=True).expand(count, -1),
        B.mean(dim=1, keepdim=True).expand(-1, count),
    )


def _cut(
    A: Tensor, B: Tensor, rank: int, moments: Moments | None
) -> tuple[Tensor, Tensor, Moments | None]:
    """At most `rank` directions of B A, the largest, in equal shares for A and B.

    With B = Q_B R_B, A^T = Q_A R_A and R_B R_A^T = U S V^T, the new factors are B X and Y A for
    X = R_A^T V S^-1/2 and Y = S^-1/2 U^T R_B. By the chain rule the gradient of Y A is X^T times
    that of A, and that of B X is that of B times Y^T; averages of gradients go the same way, those
    of squares by the squares of X and Y, as if the entries were independent.
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
    """Give a parameter other values, of another shape even; its gradient goes."""
    parameter.grad = None
    parameter.data = values.to(parameter, copy=True).contiguous()
    count_versions_([parameter])


def count_versions_(parameters: Iterable[nn.Parameter]) -> None:
    """Let autograd know that parameters have other values now.

    Fused optimizers, compiled code and `.data` write to them behind its back; DoRA keeps a norm for
    as long as the versions of A and B stay what they were.
    """
    torch.autograd.graph.increment_version(list(parameters))
