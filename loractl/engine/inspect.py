"""The heavy half of `loractl inspect`: spectra of an adapter's updates, and comparison of two."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from loractl.artifacts.peft import updates
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.updates import Update
from loractl.errors import ArtifactError
from loractl.lora import spectrum
from loractl.lora.spectrum import Factors
from loractl.reports.inspect import SHARES
from loractl.reports.inspect_plot import kind_of


def examine_adapter(adapter: Adapter, other: Adapter | None) -> dict[str, Any]:
    """Measure an adapter by module, and compare it with another one. Raises ArtifactError."""
    found = updates.updates(adapter)
    modules = {name: measure_update(update) for name, update in found.items()}
    report: dict[str, Any] = {
        "adapter": str(adapter.directory),
        "base": adapter.base,
        "parameters": sum(tensor.numel() for tensor in adapter.tensors.values()),
        "token_rows": {name or "the embedding": list(ids) for name, ids in adapter.rows.items()},
        "beside": sorted(updates.tensors_beside(adapter)),
        "kinds": summarize_kinds(modules),
        "modules": modules,
    }
    if other is not None:
        report["against"] = compare_adapters(adapter, found, other)
    return report


def measure_update(update: Update) -> dict[str, Any]:
    """Sizes, norms and spectrum of one module's update."""
    factors = update.factors
    sigma = spectrum.svd(factors)[1]
    return {
        "kind": update.kind,
        "d_out": factors.B.shape[0],
        "d_in": factors.A.shape[1],
        "rank": factors.rank,
        "alpha": update.alpha,
        "scale": factors.scale,
        "norm_A": float(factors.A.double().norm()),
        "norm_B": float(factors.B.double().norm()),
        "norm": float(sigma.norm()),
        "largest": float(sigma[0]),
        "effective_rank": spectrum.effective_rank(sigma),
        **{name: spectrum.rank_keeping(sigma, share) for name, share in SHARES.items()},
        "singular_values": sigma.tolist(),
        "energy_by_rank": spectrum.energy_by_rank(sigma).tolist(),
    }


def summarize_kinds(modules: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same by kind of module: means, and the largest rank needed to keep each share."""
    kinds: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, one in modules.items():
        kinds[kind_of(name)].append(one)
    return {
        kind: {
            "modules": len(ones),
            "rank": max(one["rank"] for one in ones),
            "parameters": sum(one["rank"] * (one["d_in"] + one["d_out"]) for one in ones),
            "mean_norm": sum(one["norm"] for one in ones) / len(ones),
            "mean_effective_rank": sum(one["effective_rank"] for one in ones) / len(ones),
            **{name: max(one[name] for one in ones) for name in SHARES},
        }
        for kind, ones in kinds.items()
    }


def compare_adapters(
    adapter: Adapter, found: Mapping[str, Update], other: Adapter
) -> dict[str, Any]:
    """Module by module: the angle between the updates, and how their subspaces overlap.

    phi is defined in section 7.2 of LoRA (arXiv 2106.09685): entry [i - 1][j - 1] compares the
    first i directions of one with the first j of the other.
    """
    others = updates.updates(other)
    both = [name for name in found if name in others]
    if not both:
        raise ArtifactError(
            f"{other.directory}: no module in common with {adapter.directory}: {next(iter(others))}"
            f" against {next(iter(found))}"
        )
    modules = {}
    for name in both:
        one, two = found[name].factors, others[name].factors
        shapes = [(one.A.shape[1], one.B.shape[0]), (two.A.shape[1], two.B.shape[0])]
        if shapes[0] != shapes[1]:
            sizes = " and ".join(f"{d_in} -> {d_out}" for d_in, d_out in shapes)
            raise ArtifactError(
                f"{other.directory}: {name} differs in size ({sizes}): the bases are not the same"
            )
        modules[name] = _compare_updates(one, two)
    cosines = [m["cosine"] for m in modules.values() if m["cosine"] is not None]
    return {
        "adapter": str(other.directory),
        "mean_cosine": sum(cosines) / len(cosines) if cosines else None,
        "modules": modules,
        "only_here": [name for name in found if name not in others],
        "only_there": [name for name in others if name not in found],
    }


def _compare_updates(one: Factors, two: Factors) -> dict[str, Any]:
    (A1, update1), (A2, update2) = spectrum.subspaces(one), spectrum.subspaces(two)
    return {
        "cosine": spectrum.cosine(one, two),
        "phi_A": spectrum.similarity(A1, A2).tolist(),
        "phi_update": spectrum.similarity(update1, update2).tolist(),
        "chance": max(one.rank, two.rank) / one.A.shape[1],
    }
