"""Arithmetic with updates: merge and unmerge them, change their rank, combine several into one.

Works in memory, one module at a time; files and names are handled elsewhere. Exact are `unmerge_`
after `merge_` (bitwise) and `resize` to at least the present rank; a smaller rank gives the best
approximation of that rank (Eckart and Young). In `combine`, "cat" is the exact sum of the updates,
and "svd" its best approximation, exact once the rank reaches the sum of the ranks. Every other
method mixes A and B separately and is not a sum: the product of B1 + B2 and A1 + A2 also contains
B1 A2 and B2 A1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loractl.lora.inject import adapters
from loractl.lora.layer import Held
from loractl.lora.spectrum import Factors, lost_energy, rank_keeping, svd
from loractl.lora.token_rows import saved_modules
from loractl.lora.whole import set_parameter_

Kept = Mapping[str, Held]


def merge_(model: nn.Module) -> Kept:
    """Add the update of every adapted layer to its weight, rounded once to the weight's dtype, and
    replace every frozen module, or its rows, by what is trained in its place.

    The layers then cost no more than plain ones. Returns the original weights, which `unmerge_`
    puts back, so the adapted weights take their memory twice. (W + dW) - dW would need no copy, but
    would be off by rounding.
    """
    kept: dict[str, Held] = {}
    for name, layer in adapters(model).items():
        assert layer.enabled, f"{name} is already merged or switched off"
        merged = nn.Parameter(layer.merged_weight(), requires_grad=False)
        kept[name] = layer.swap_weight_(merged)
        layer.enabled = False
    for name, module in saved_modules(model).items():
        assert module.enabled, f"{name} is already merged or switched off"
        kept |= {f"{name}:{inner}": old for inner, old in module.swap_weights_().items()}
        module.enabled = False
    return kept


def unmerge_(model: nn.Module, kept: Kept) -> None:
    """Put back what `merge_` returned: the same tensors, so exact, and shared where they were."""
    layers, modules = adapters(model), saved_modules(model)
    for name, weight in kept.items():
        path, _, inner = name.partition(":")
        if path in layers:
            layers[path].swap_weight_(weight)
            layers[path].enabled = True
        else:
            assert isinstance(weight, nn.Parameter)
            set_parameter_(modules[path].base, inner, weight)
            modules[path].enabled = True


@dataclass(frozen=True)
class Cut:
    """Factors of scale 1, in float32, that approximate another matrix."""

    factors: Factors
    norm: float  # Frobenius norm of that matrix
    lost: float  # share of the squared norm that is lost
    sigma: Tensor | None  # every singular value of that matrix, if all were computed

    @property
    def kept(self) -> float:
        return 1 - self.lost

    @property
    def error(self) -> float:
        """|original - factors| / |original| in the Frobenius norm."""
        return math.sqrt(self.lost)


def resize(factors: Factors, *, rank: int | None = None, energy: float | None = None) -> Cut:
    """The best factors of a rank, or of the smallest rank that keeps a share of the energy.

    Energy is the sum of the squared singular values. Uses the thin factors alone. A rank above that
    of `factors`, or above what the weight's shape allows, is reduced to it.
    """
    U, sigma, Vh = svd(factors)
    k = size(sigma, rank, energy)
    norm = float(torch.linalg.vector_norm(sigma))
    cut = balanced(U[:, :k], sigma[:k], sigma[:k, None] * Vh[:k])
    return Cut(cut, norm, lost_energy(sigma, k), sigma)


def size(sigma: Tensor, rank: int | None, energy: float | None) -> int:
    """How many of these singular values to keep."""
    if rank is not None:
        assert energy is None and rank >= 1, f"rank {rank} and energy {energy}"
        return min(rank, len(sigma))
    assert energy is not None and 0 < energy <= 1, f"rank {rank} and energy {energy}"
    return rank_keeping(sigma, energy)


def balanced(U: Tensor, sigma: Tensor, rows: Tensor) -> Factors:
    """B = U sqrt(sigma) and A = rows / sqrt(sigma), where rows (k, d_in) is U^T times the matrix.

    A and B get the same norm, so further training treats them alike.
    """
    root = sigma.double().clamp(min=torch.finfo(torch.float64).tiny).sqrt()  # (k,)
    A, B = rows.double() / root[:, None], U.double() * root
    return Factors(A.float().contiguous(), B.float().contiguous())


Mix = Callable[[Sequence[Tensor], Tensor, float, torch.Generator | None], Tensor]


def _linear(
    tensors: Sequence[Tensor], weights: Tensor, density: float, generator: torch.Generator | None
) -> Tensor:
    """The weighted sum: task arithmetic, arXiv 2212.04089."""
    return _weighted(tensors, weights).sum(0)


def _ties(
    tensors: Sequence[Tensor], weights: Tensor, density: float, generator: torch.Generator | None
) -> Tensor:
    """Trim each to its largest values, elect signs, average values that agree: arXiv 2306.01708."""
    return _disjoint([_largest(one, density) for one in tensors], weights)


def _dare(
    tensors: Sequence[Tensor], weights: Tensor, density: float, generator: torch.Generator | None
) -> Tensor:
    """Drop values at random and rescale the rest to keep the expectation: arXiv 2311.03099."""
    return _weighted([_random(one, density, generator) for one in tensors], weights).sum(0)


def _dare_ties(
    tensors: Sequence[Tensor], weights: Tensor, density: float, generator: torch.Generator | None
) -> Tensor:
    """Drop at random like `_dare`, then elect signs like `_ties`."""
    return _disjoint([_random(one, density, generator) for one in tensors], weights)


MIXES: dict[str, Mix] = {
    "linear": _linear,
    "ties": _ties,
    "dare": _dare,
    "dare_ties": _dare_ties,
}
"""How the A's are mixed, and the B's; same numbers as PEFT 0.21.2's functions of these names in
utils/merge_utils.py ("dare" is its dare_linear)."""
EXACT = ("cat", "svd")


def combine(
    parts: Sequence[Factors],
    weights: Sequence[float],
    how: str,
    *,
    rank: int | None = None,
    density: float = 1.0,
    generator: torch.Generator | None = None,
) -> Factors:
    """Combine several updates into one, as PEFT 0.21.2's `add_weighted_adapter` does.

    "cat" is exactly the sum of w s B A, at the sum of the ranks; "svd" is the best approximation of
    rank `rank` to that sum, by default the largest rank of the parts. The `MIXES` work on A and B
    separately, each part weighted by sqrt(|w s|) with the sign of w s on A; they raise ValueError
    for unequal ranks. `density` is the share of values that "ties" and "dare" keep.
    """
    if how in EXACT:
        A = torch.cat([part.A.float() * (w * part.scale) for part, w in _zip(parts, weights)])
        B = torch.cat([part.B.float() for part in parts], dim=1)
        both = Factors(A, B)  # (sum of r, d_in), (d_out, sum of r)
        at_most = rank or max(part.rank for part in parts)
        return both if how == "cat" else resize(both, rank=at_most).factors
    if len(found := sorted({part.rank for part in parts})) > 1:
        raise ValueError(f"ranks {', '.join(map(str, found))}: {how} needs equal ranks")
    shares = [w * part.scale for part, w in _zip(parts, weights)]
    on_B = torch.tensor([math.sqrt(abs(share)) for share in shares])
    on_A = torch.tensor([math.copysign(math.sqrt(abs(share)), share) for share in shares])
    # A before B: the order in which PEFT draws for "dare".
    A = MIXES[how]([part.A.float() for part in parts], on_A, density, generator)
    B = MIXES[how]([part.B.float() for part in parts], on_B, density, generator)
    return Factors(A, B)


def _zip(parts: Sequence[Factors], weights: Sequence[float]) -> list[tuple[Factors, float]]:
    return list(zip(parts, weights, strict=True))


def _weighted(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Each tensor times its weight: (n, rows, columns)."""
    return torch.stack(list(tensors)) * weights[:, None, None]


def _largest(tensor: Tensor, density: float) -> Tensor:
    """Keep the values of largest magnitude, set the rest to zero."""
    if density >= 1:
        return tensor
    mask = torch.zeros_like(tensor).flatten()
    mask[tensor.abs().flatten().topk(int(density * tensor.numel())).indices] = 1
    return tensor * mask.view_as(tensor)


def _random(tensor: Tensor, density: float, generator: torch.Generator | None) -> Tensor:
    """Keep each value with this probability and divide it by that, set the rest to zero."""
    if density >= 1:
        return tensor
    mask = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * mask / density


def _disjoint(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Elementwise weighted mean over the parts whose sign is that of the sum of all parts."""
    stacked = torch.stack(list(tensors))  # (n, rows, columns)
    elected = torch.where(stacked.sum(0) >= 0, 1, -1)
    agree = stacked.sign() == elected
    return (_weighted(tensors, weights) * agree).sum(0) / agree.sum(0).clamp(min=1)
