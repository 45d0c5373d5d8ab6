"""`loractl adapters resize`, and what the commands that make adapters from others share."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl import __version__, console, text
from loractl.commands.arguments import check_out, require_size
from loractl.digests import file_sha256
from loractl.errors import ArtifactError

if TYPE_CHECKING:
    from loractl.artifacts.peft.adapter import Adapter
    from loractl.artifacts.peft.updates import Update
    from loractl.lora.algebra import Cut


def resize(
    path: Path,
    out: Path,
    *,
    rank: int | None,
    energy: float | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Write the best adapter of a rank, or of the smallest ranks that keep a share of the energy.

    Raises ArtifactError for an adapter that is no plain low-rank update, or changes nothing.
    """
    require_size(rank, energy)
    check_out(out, overwrite=overwrite)

    from loractl.artifacts import files
    from loractl.artifacts.peft import adapter as adapters
    from loractl.artifacts.peft import updates
    from loractl.lora.algebra import resize as cut_to

    adapter = adapters.read(path)
    check_out(out, overwrite=overwrite, sources=(adapter.directory,))
    copied = updates.copies(adapter, doing="resized")
    found = updates.updates(adapter)
    cuts = {
        name: cut_to(update.factors, rank=rank, energy=energy) for name, update in found.items()
    }
    require_effect(adapter.directory, [cut.norm for cut in cuts.values()])
    made = {"rank": rank} if rank is not None else {"energy": energy}
    report = _report(out, made, found, cuts)
    about = about_made("resize", {"adapter": adapter}, {**made, "error": report["error"]})

    def write(directory: Path) -> None:
        updates.write_updates(
            directory,
            {name: (found[name].kind, cut.factors) for name, cut in cuts.items()},
            config=updates.config_of(adapter),
            about=about,
            chat_template=adapter.chat_template,
            copied=copied,
        )

    files.publish(out, write)
    own = max(update.factors.rank for update in found.values())
    if rank is not None and rank > own:
        console.note(f"note: no module has a rank above {own}; nothing was cut")
    console.result(json.dumps(report, indent=2) if as_json else _as_text(report))
    return 0


def _report(
    out: Path, made: Mapping[str, Any], found: Mapping[str, "Update"], cuts: Mapping[str, "Cut"]
) -> dict[str, Any]:
    modules = {
        name: {
            "rank_before": found[name].factors.rank,
            "rank": cut.factors.rank,
            "norm": cut.norm,
            "kept_energy": cut.kept,
            "error": cut.error,
        }
        for name, cut in cuts.items()
    }
    total = math.fsum(cut.norm**2 for cut in cuts.values())
    lost = math.fsum(cut.lost * cut.norm**2 for cut in cuts.values()) / total
    before, after = (
        sum(one.rank * (one.A.shape[1] + one.B.shape[0]) for one in parts)
        for parts in (
            [update.factors for update in found.values()],
            [cut.factors for cut in cuts.values()],
        )
    )
    return {
        "out": str(out),
        **made,
        "kept_energy": 1 - lost,
        "error": math.sqrt(lost),
        "parameters_before": before,
        "parameters": after,
        "modules": modules,
    }


def _as_text(report: Mapping[str, Any]) -> str:
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
            text.table(["module", "rank", "now", "kept", "error"], rows),
            f"all: {text.percent(report['kept_energy'])} of the energy kept, relative error"
            f" {report['error']:.2e}; {report['parameters_before']:,} ->"
            f" {report['parameters']:,} parameters",
            report["out"],
        ]
    )


def require_effect(where: Path, norms: Sequence[float]) -> None:
    """An adapter that changes nothing is never a success."""
    if not any(norm > 0 for norm in norms):
        raise ArtifactError(f"{where}: the adapter changes nothing: its update is zero everywhere")


def about_made(
    command: str, sources: Mapping[str, "Adapter"], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """loractl.json of an adapter made from others: from which bytes, how, for which base."""

    from loractl.artifacts.peft.adapter import WEIGHTS

    first = next(iter(sources.values()))
    return {
        "loractl": __version__,
        "base": first.about.get("base") or {"name_or_path": first.base},
        "made": {
            "by": f"adapters {command}",
            "from": {
                name: {
                    "path": str(source.directory),
                    "sha256": file_sha256(source.directory / WEIGHTS),
                }
                for name, source in sources.items()
            },
            **settings,
        },
    }
