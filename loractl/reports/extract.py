"""The results of `loractl adapters extract`, as numbers and as text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl import text
from loractl.text import percent

if TYPE_CHECKING:
    from loractl.lora.spectrum import Factors


@dataclass(frozen=True)
class Change:
    """How far a tensor moved; norms in float64."""

    norm: float  # |W' - W|
    base_norm: float  # |W|

    @property
    def relative(self) -> float | None:
        return self.norm / self.base_norm if self.base_norm > 0 else None


@dataclass
class Findings:
    """Changes by module and, where no adapter can express them, by tensor."""

    updates: dict[str, tuple[str, "Factors"]]
    modules: dict[str, dict[str, Any]]
    rest: dict[str, tuple[Change, str]]  # with the reason
    unchanged: int
    dtypes: set[str]
    changed_energy: float  # sum of |W' - W|^2 over all tensors
    kept_energy: float

    @property
    def energy_of_rest(self) -> float:
        return math.fsum(change.norm**2 for change, _ in self.rest.values())


def report_of(out: Path, size: Mapping[str, Any], found: Findings) -> dict[str, Any]:
    from loractl.artifacts.peft.updates import in_order

    expressible = found.changed_energy - found.energy_of_rest
    return {
        "out": str(out),
        **size,
        "kept_energy": found.kept_energy / found.changed_energy,
        "kept_energy_of_modules": found.kept_energy / expressible,
        "modules": dict(sorted(found.modules.items(), key=lambda one: in_order(one[0]))),
        "not_expressed": {
            name: {"relative_change": change.relative, "why": reason}
            for name, (change, reason) in sorted(
                found.rest.items(), key=lambda one: in_order(one[0])
            )
        },
        "unchanged_tensors": found.unchanged,
    }


def as_text(report: Mapping[str, Any]) -> str:
    def share(change: float | None) -> str:
        return "was zero" if change is None else f"{change:.2e}"

    def rank(number: float | None) -> str:
        return (
            "-" if number is None else f"{number:.2f}" if isinstance(number, float) else str(number)
        )

    rows = [
        [name, f"{m['d_out']} x {m['d_in']}", share(m["relative_change"]), str(m["rank"]),
         percent(m["kept_energy"]), f"{m['error']:.2e}", rank(m["effective_rank"]),
         rank(m["rank_90"])]
        for name, m in report["modules"].items()
    ]  # fmt: skip
    header = [
        "module",
        "shape",
        "change",
        "rank",
        "kept",
        "error",
        "effective rank",
        "rank for 90%",
    ]
    lines = [text.table(header, rows)]
    if rest := report["not_expressed"]:
        other = [[name, share(one["relative_change"]), one["why"]] for name, one in rest.items()]
        lines += ["", text.table(["not expressed", "change", "why"], other)]
    lines += [
        "",
        f"kept: {percent(report['kept_energy_of_modules'])} of the change in these modules,"
        f" {percent(report['kept_energy'])} of all that changed; {report['unchanged_tensors']}"
        " tensors are unchanged",
        report["out"],
    ]
    return "\n".join(lines)


def notes(found: Findings, head: str | None) -> list[str]:
    lines = []
    mixed = sorted(one for one in found.dtypes if len(set(one.split(" -> "))) > 1)
    if mixed:
        lines.append(
            f"note: the models differ in dtype ({', '.join(mixed)}); the change includes rounding"
            " errors, which a low rank cannot capture"
        )
    wide = [
        name
        for name, m in found.modules.items()
        if m["rank"] * (m["d_in"] + m["d_out"]) >= m["d_in"] * m["d_out"]
    ]
    if wide:
        lines.append(
            f"note: in {len(wide)} modules the rank is so high that A and B have as many values as"
            f" the weight or more, first in {wide[0]}"
        )
    if head in found.updates:
        lines.append(f"note: the output head {head} is adapted, which some programs do not support")
    return lines
