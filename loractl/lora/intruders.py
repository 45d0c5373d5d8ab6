"""Intruder dimensions: directions that an update makes important in a weight which has none like
them.

"LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228, definition 1: a left
singular vector of W + s B A, among the k with the largest singular values, whose cosine with every
left singular vector of W is below epsilon. They go with forgetting, more than a low loss tells.
"""

import torch
from torch import Tensor

TOP = 10
EPSILON = 0.5
"""k and epsilon as in PEFT's `reduce_intruder_dimension`; the paper varies both."""


def intruders(W: Tensor, tuned: Tensor, *, top: int = TOP, epsilon: float = EPSILON) -> int:
    """How many of the first `top` left singular vectors of the tuned weight are intruders.

    Both weights are (d_out, d_in).
    """
    cosines = left_vectors(tuned)[:, :top].T @ left_vectors(W)  # (top, min(d_out, d_in))
    return int((cosines.abs().amax(dim=1) < epsilon).sum())


def left_vectors(W: Tensor) -> Tensor:
    """The left singular vectors of W as columns, (d_out, min(d_out, d_in)), the largest first.

    From the smaller of W W^T and W^T W in float64: half to a quarter of the time of an SVD of W
    (576 x 576 to 576 x 1536), and its rounding shows only in directions below a millionth of the
    largest.
    """
    W = W.double()
    if W.shape[0] <= W.shape[1]:
        left: Tensor = torch.linalg.eigh(W @ W.T)[1]  # the smallest first
        return left.flip(1)
    energies, right = torch.linalg.eigh(W.T @ W)
    lengths = energies.clamp_min(torch.finfo(W.dtype).tiny).sqrt()
    left = W @ right / lengths
    return left.flip(1)


def operations(d_out: int, d_in: int) -> float:
    """Roughly how many floating-point operations `intruders` takes for a weight of this size."""
    short, long = sorted((d_out, d_in))
    return 2.0 * (2 * long * short**2 + 20 * short**3)
