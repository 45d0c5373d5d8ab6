"""Examples small enough to see whole, computed in place: a matrix of rank 5 cut to lower ranks, and
the first steps of B A learning an update from both initializations.
"""

import math
from typing import Any

SIZE, RANK = 24, 5  # of the matrix that is approximated
ROWS, COLUMNS, INNER = 10, 14, 2  # of the update that is learned, and its rank
NOISE = 0.12  # standard deviation, relative to the root mean square of the matrix
FRAMES = (0, 1, 2, 5, 10, 20, 40, 80)  # steps that are shown
STEP = 0.02  # learning rate of plain gradient descent


def approximation(seed: int = 5) -> dict[str, Any]:
    """A matrix of rank 5 as U diag(sigma) V^T, and the error that each lower rank leaves.

    The error is |M - M_k| / |M|, Frobenius, of the best M_k of rank k: by Eckart and Young (1936)
    the root of the share of the squared singular values beyond the first k. `noisy` is the same
    for the matrix with noise, whose rank is full.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    across = np.linspace(0, 1, SIZE)
    waves = [np.cos(math.pi * (n + 1) * across + n) for n in range(RANK)]
    left = np.stack(waves, 1) + 0.35 * generator.standard_normal((SIZE, RANK))
    right = np.stack(waves[::-1], 1) + 0.35 * generator.standard_normal((SIZE, RANK))
    exact = left @ np.diag(0.62 ** np.arange(RANK)) @ right.T  # (24, 24)
    U, sigma, Vh = np.linalg.svd(exact)
    root_mean_square = np.linalg.norm(exact) / SIZE
    noise = NOISE * root_mean_square * generator.standard_normal(exact.shape)
    noisy = np.linalg.svd(exact + noise, compute_uv=False)
    return {
        "size": SIZE,
        "rank": RANK,
        "u": np.round(U[:, :RANK], 4).tolist(),
        "v": np.round(Vh[:RANK].T, 4).tolist(),
        "sigma": np.round(sigma[:RANK], 4).tolist(),
        "errors": errors(sigma.tolist()),
        "noisy": errors(noisy.tolist()),
    }


def errors(sigma: list[float]) -> list[float]:
    """The relative error that is left with the first 0, 1, 2, ... singular values."""
    squares = [value * value for value in sigma]
    total = sum(squares)
    left = [max(0.0, math.fsum(squares[k:])) / total for k in range(len(squares) + 1)]
    return [round(math.sqrt(share), 6) if share > 1e-24 else 0.0 for share in left]


def first_steps(seed: int = 3) -> dict[str, list[dict[str, Any]]]:
    """Gradient descent on |target - B A|^2 / 2 from either start: A random and B zero, or the other
    way round. For each shown step: A (2, 14), B (10, 2), B A, the loss and both gradient norms.

    dL/dB = G A^T and dL/dA = B^T G with G = B A - target, the gradients of LoRA with the scale 1
    and inputs that are the identity.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    low = generator.standard_normal((ROWS, INNER)), generator.standard_normal((INNER, COLUMNS))
    target = low[0] @ low[1]
    limit = 1 / math.sqrt(INNER)
    starts = {
        "a": (generator.uniform(-limit, limit, (INNER, COLUMNS)), np.zeros((ROWS, INNER))),
        "b": (np.zeros((INNER, COLUMNS)), generator.uniform(-limit, limit, (ROWS, INNER))),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (A, B) in starts.items():
        found[name] = []
        for step in range(FRAMES[-1] + 1):
            G = B @ A - target  # (10, 14)
            of_B, of_A = G @ A.T, B.T @ G
            if step in FRAMES:
                found[name].append({
                    "step": step,
                    "A": np.round(A, 3).tolist(),
                    "B": np.round(B, 3).tolist(),
                    "BA": np.round(B @ A, 3).tolist(),
                    "loss": round(float((G * G).sum() / (target * target).sum()), 4),
                    "grad_A": round(float(np.linalg.norm(of_A)), 3),
                    "grad_B": round(float(np.linalg.norm(of_B)), 3),
                })  # fmt: skip
            A, B = A - STEP * of_A, B - STEP * of_B
    return found
