"""`loractl inspect`: what an adapter is made of, and whether another one changes the same things.

Reads the adapter's files alone; its base is not needed.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl import console, text
from loractl.errors import ArtifactError
from loractl.reports.inspect_plot import require_plot

if TYPE_CHECKING:
    from loractl.artifacts.peft.adapter import Adapter
    from loractl.artifacts.peft.updates import Update
    from loractl.lora.spectrum import Factors

SHARES = {"rank_90": 0.90, "rank_95": 0.95, "rank_99": 0.99}


def run(path: Path, *, against: Path | None, plot: Path | None, as_json: bool) -> int:
    """Print the measures of an adapter, as tables or JSON. Raises ArtifactError."""
    if plot is not None:
        require_plot(plot)

    from loractl.artifacts.peft import adapter as adapters
    from loractl.artifacts.peft import updates

    adapter = adapters.read(path)
    found = updates.updates(adapter)
    other = None if against is None else adapters.read(against)
    modules = {name: measure(update) for name, update in found.items()}
    report: dict[str, Any] = {
        "adapter": str(adapter.directory),
        "base": adapter.base,
        "parameters": sum(tensor.numel() for tensor in adapter.tensors.values()),
        "beside": sorted(updates.tensors_beside(adapter)),
        "kinds": summary(modules),
        "modules": modules,
    }
    if other is not None:
        report["against"] = compare(adapter, found, other)
    if plot is not None:
        from loractl.reports.inspect_plot import draw

        draw(plot, {name: m["singular_values"] for name, m in modules.items()}, kind_of)
        report["plot"] = str(plot)
    console.result(json.dumps(report, indent=2, allow_nan=False) if as_json else as_text(report))
    return 0


def kind_of(module: str) -> str:
    """The last name of a module's path, which layers, and experts, share: q_proj."""
    return module.rpartition(".")[2].partition("[")[0]


def measure(update: "Update") -> dict[str, Any]:
    """Sizes, norms and spectrum of the update of one module."""
    from loractl.lora import spectrum

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


def summary(modules: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same by kind of module: means, and the largest of each rank that keeps a share."""
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


def compare(adapter: "Adapter", found: Mapping[str, "Update"], other: "Adapter") -> dict[str, Any]:
    """Module by module: the angle between the updates, and how their subspaces overlap.

    phi is that of section 7.2 of LoRA (arXiv 2106.09685): entry [i - 1][j - 1] compares the first
    i directions of the one with the first j of the other.
    """
    from loractl.artifacts.peft import updates

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
                f"{other.directory}: {name} is of another size ({sizes}): the bases differ"
            )
        modules[name] = _similar(one, two)
    cosines = [m["cosine"] for m in modules.values() if m["cosine"] is not None]
    return {
        "adapter": str(other.directory),
        "mean_cosine": sum(cosines) / len(cosines) if cosines else None,
        "modules": modules,
        "only_here": [name for name in found if name not in others],
        "only_there": [name for name in others if name not in found],
    }


def _similar(one: "Factors", two: "Factors") -> dict[str, Any]:
    from loractl.lora.spectrum import cosine, similarity, subspaces

    (A1, update1), (A2, update2) = subspaces(one), subspaces(two)
    return {
        "cosine": cosine(one, two),
        "phi_A": similarity(A1, A2).tolist(),
        "phi_update": similarity(update1, update2).tolist(),
        "chance": max(one.rank, two.rank) / one.A.shape[1],
    }


def as_text(report: Mapping[str, Any]) -> str:
    """The report as tables: by module, by kind of module, and against the other adapter."""
    rows = [
        [
            name, str(m["rank"]), f"{m['alpha']:g}", f"{m['scale']:.3g}",
            *(f"{m[norm]:.3g}" for norm in ("norm_A", "norm_B", "norm", "largest")),
            f"{m['effective_rank']:.2f}", *(str(m[share]) for share in SHARES),
        ]
        for name, m in report["modules"].items()
    ]  # fmt: skip
    keeps = ["90%", "95%", "99%"]
    header = ["module", "rank", "alpha", "scale", "|A|", "|B|", "|dW|", "sigma 1", "effective"]
    kinds = [
        [
            kind, str(k["modules"]), str(k["rank"]), str(k["parameters"]), f"{k['mean_norm']:.3g}",
            f"{k['mean_effective_rank']:.2f}", *(str(k[share]) for share in SHARES),
        ]
        for kind, k in report["kinds"].items()
    ]  # fmt: skip
    lines = [
        f"{report['adapter']}: {report['parameters']:,} parameters for"
        f" {report['base'] or 'a base that it does not name'}",
        "dW = scale x B A; effective: the rank by the entropy of its singular values; 90%: the rank"
        " that keeps 90% of their squares",
        "",
        text.table([*header, *keeps], rows),
        "",
        text.table(
            ["kind", "modules", "rank", "parameters", "mean |dW|", "mean effective", *keeps], kinds
        ),
    ]
    if beside := report["beside"]:
        lines += ["", f"not counted in dW: {beside[0]} ({len(beside)} such tensors)"]
    if "against" in report:
        lines += ["", *_against(report["against"])]
    if "plot" in report:
        lines += ["", report["plot"]]
    return "\n".join(lines)


def _against(report: Mapping[str, Any]) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    def corner(phi: Sequence[Sequence[float]], at: int) -> str:
        """phi(1, 1) or phi(r, r); an update that is zero has no directions."""
        return number(phi[at][at] if phi and phi[0] else None)

    rows = [
        [
            name, number(m["cosine"]), corner(m["phi_A"], 0), corner(m["phi_A"], -1),
            corner(m["phi_update"], 0), corner(m["phi_update"], -1), number(m["chance"]),
        ]
        for name, m in report["modules"].items()
    ]  # fmt: skip
    header = ["module", "cosine", "A: 1", "A: all", "dW: 1", "dW: all", "by chance"]
    lines = [
        f"against {report['adapter']}: cosine of the updates, and the overlap of their first and of"
        " all input directions, 0 to 1",
        text.table(header, rows),
    ]
    for where, names in (("here", report["only_here"]), ("there", report["only_there"])):
        if names:
            lines.append(f"only {where}: {names[0]} ({len(names)} modules)")
    return lines
