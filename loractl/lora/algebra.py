"""Arithmetic with updates: into the weights and out again, to another rank, several into one.

In memory, a module at a time; files and names are left to others. What is exact: `unmerge_` after
`merge_` (bitwise), and `resize` to at least the rank that is there; to less it is the best of its
rank (Eckart and Young). Of `combine`, "cat" is the exact sum of the updates, and "svd" the best of
a rank for it, exact from the sum of the ranks on. All else mixes A and B apart and is no sum: the
product of B1 + B2 and A1 + A2 also has B1 A2 and B2 A1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loractl.lora.inject import adapters
from loractl.lora.spectrum import Factors, lost_energy, rank_keeping, svd
from loractl.lora.whole import set_parameter_, wholes

Kept = Mapping[str, nn.Parameter]


def merge_(model: nn.Module) -> Kept:
    """Put the update of every adapted layer into its weight, each rounded once to its dtype, and
    every module that is trained whole in the place of the frozen one.

    The layers then cost what plain ones do. Returns the weights as they were, which `unmerge_`
    puts back. That is the price: the bytes of the adapted weights once more. (W + dW) - dW would
    need none, and be a rounding off.
    """
    kept: dict[str, nn.Parameter] = {}
    for name, layer in adapters(model).items():
        assert layer.enabled, f"{name} is merged or switched off already"
        merged = nn.Parameter(layer.merged_weight(), requires_grad=False)
        kept[name] = layer.swap_weight_(merged)
        layer.enabled = False
    for name, module in wholes(model).items():
        assert module.enabled, f"{name} is merged or switched off already"
        kept |= {f"{name}:{inner}": old for inner, old in module.swap_weights_().items()}
        module.enabled = False
    return kept


def unmerge_(model: nn.Module, kept: Kept) -> None:
    """Put back what `merge_` returned: the same tensors, so bitwise, and shared where they were."""
    layers, modules = adapters(model), wholes(model)
    for name, weight in kept.items():
        path, _, inner = name.partition(":")
        if path in layers:
            layers[path].swap_weight_(weight)
            layers[path].enabled = True
        else:
            set_parameter_(modules[path].base, inner, weight)
            modules[path].enabled = True


@dataclass(frozen=True)
class Cut:
    """Factors of scale 1, in float32, that stand in place of another matrix."""

    factors: Factors
    norm: float  # Frobenius, of what they stand for
    lost: float  # share of the squared norm that is gone
    sigma: Tensor | None  # every singular value of what they stand for, where all were computed

    @property
    def kept(self) -> float:
        return 1 - self.lost

    @property
    def error(self) -> float:
        """|original - factors| / |original|, Frobenius."""
        return math.sqrt(self.lost)


def resize(factors: Factors, *, rank: int | None = None, energy: float | None = None) -> Cut:
    """The best factors of a rank, or of the smallest rank that keeps a share of the energy.

    Energy is the sum of the squared singular values. From the thin factors alone. A rank above that
    of `factors`, or above what the weight's shape allows, is cut down to it.
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
    """B = U sqrt(sigma) and A = rows / sqrt(sigma), rows (k, d_in) being U^T times the matrix.

    A and B come out of equal size, so that training on treats them alike.
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
    """Keep the largest values of each, elect a sign, average what has it: arXiv 2306.01708."""
    return _disjoint([_largest(one, density) for one in tensors], weights)


def _dare(
    tensors: Sequence[Tensor], weights: Tensor, density: float, generator: torch.Generator | None
) -> Tensor:
    """Drop values at random, and scale the rest up to the same expectation: arXiv 2311.03099."""
    return _weighted([_random(one, density, generator) for one in tensors], weights).sum(0)


def _dare_ties(
    tensors: Sequence[Tensor], weights: Tensor, density: float, generator: torch.Generator | None
) -> Tensor:
    """Drop at random as `_dare`, then elect signs as `_ties`."""
    return _disjoint([_random(one, density, generator) for one in tensors], weights)


MIXES: dict[str, Mix] = {
    "linear": _linear,
    "ties": _ties,
    "dare": _dare,
    "dare_ties": _dare_ties,
}
"""How A's are mixed with A's and B's with B's; the numbers of PEFT 0.21.2's functions of these
names in utils/merge_utils.py ("dare" is its dare_linear)."""
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
    """One update from several, as PEFT 0.21.2's `add_weighted_adapter` makes it.

    "cat" is sum of w s B A exactly, at the sum of the ranks; "svd" the best of `rank` for that sum,
    by default the largest rank of the parts. The `MIXES` work on A and B by themselves, each part
    weighted by sqrt(|w s|) with the sign of w s on A; they need equal ranks, else ValueError.
    `density` is the share of values that "ties" and "dare" keep.
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
    # A before B: the order of PEFT's draws for "dare".
    A = MIXES[how]([part.A.float() for part in parts], on_A, density, generator)
    B = MIXES[how]([part.B.float() for part in parts], on_B, density, generator)
    return Factors(A, B)


def _zip(parts: Sequence[Factors], weights: Sequence[float]) -> list[tuple[Factors, float]]:
    return list(zip(parts, weights, strict=True))


def _weighted(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """(n, rows, columns), each times its weight."""
    return torch.stack(list(tensors)) * weights[:, None, None]


def _largest(tensor: Tensor, density: float) -> Tensor:
    """The values of largest magnitude, the rest zero."""
    if density >= 1:
        return tensor
    mask = torch.zeros_like(tensor).flatten()
    mask[tensor.abs().flatten().topk(int(density * tensor.numel())).indices] = 1
    return tensor * mask.view_as(tensor)


def _random(tensor: Tensor, density: float, generator: torch.Generator | None) -> Tensor:
    """Values drawn at random with this probability and divided by it, the rest zero."""
    if density >= 1:
        return tensor
    mask = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * mask / density


def _disjoint(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """At each place the weighted mean over the parts that have the sign of the sum of all."""
    stacked = torch.stack(list(tensors))  # (n, rows, columns)
    elected = torch.where(stacked.sum(0) >= 0, 1, -1)
    agree = stacked.sign() == elected
    return (_weighted(tensors, weights) * agree).sum(0) / agree.sum(0).clamp(min=1)
