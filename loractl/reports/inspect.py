"""The measurements of `loractl inspect`, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from loractl import text

SHARES = {"rank_90": 0.90, "rank_95": 0.95, "rank_99": 0.99}
"""Shares of the energy; the smallest rank that keeps each is reported."""


def as_text(report: Mapping[str, Any]) -> str:
    """The report as tables: by module, by kind of module, and compared with another adapter."""
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
        f" {report['base'] or 'an unnamed base'}",
        "dW = scale x B A; effective: rank from the entropy of its singular values; 90%: rank that"
        " keeps 90% of their squared sum",
        "",
        text.table([*header, *keeps], rows),
        "",
        text.table(
            ["kind", "modules", "rank", "parameters", "mean |dW|", "mean effective", *keeps], kinds
        ),
    ]
    if beside := report["beside"]:
        lines += ["", f"not included in dW: {beside[0]} ({len(beside)} such tensors)"]
    if rows := report["token_rows"]:
        listed = ", ".join(f"{len(ids)} in {name}" for name, ids in rows.items())
        lines += ["", f"rows of single tokens: {listed}"]
    if "against" in report:
        lines += ["", *_comparison_lines(report["against"])]
    if "plot" in report:
        lines += ["", report["plot"]]
    return "\n".join(lines)


def _comparison_lines(report: Mapping[str, Any]) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    def corner(phi: Sequence[Sequence[float]], at: int) -> str:
        """phi(1, 1) or phi(r, r); a zero update has no directions."""
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
        f"against {report['adapter']}: cosine of the updates, and overlap (0 to 1) of their first"
        " and of all input directions",
        text.table(header, rows),
    ]
    for where, names in (("here", report["only_here"]), ("there", report["only_there"])):
        if names:
            lines.append(f"only {where}: {names[0]} ({len(names)} modules)")
    return lines
