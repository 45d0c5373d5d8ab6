"""The results of `loractl adapters resize` and `combine`, as text."""

from collections.abc import Mapping
from typing import Any

from loractl import text


def resize_as_text(report: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            str(m["rank_before"]),
            str(m["rank"]),
            text.percent(m["kept_energy"]),
            f"{m['error']:.2e}",
        ]
        for name, m in report["modules"].items()
    ]
    return "\n".join(
        [
            text.table(["module", "rank before", "rank", "kept", "error"], rows),
            f"total: {text.percent(report['kept_energy'])} of the energy kept, relative error"
            f" {report['error']:.2e}; {report['parameters_before']:,} ->"
            f" {report['parameters']:,} parameters",
            report["out"],
        ]
    )


def combine_as_text(report: Mapping[str, Any]) -> str:
    ranks = sorted({module["rank"] for module in report["modules"].values()})
    off = report["difference_from_sum"]
    distance = (
        "the exact sum of the updates is zero"
        if off is None
        else f"relative distance {off:.2e} from the exact sum of the updates"
    )
    listed = ", ".join(f"{name} (weight {w:g})" for name, w in report["weights"].items())
    return (
        f"combined by {report['how']}: {listed}\n"
        f"{text.counted(len(report['modules']), 'module')} of rank {', '.join(map(str, ranks))};"
        f" {distance}\n{report['out']}"
    )
