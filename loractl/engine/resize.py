"""The heavy half of `loractl adapters resize`: the best approximation of every update by rank."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loractl.artifacts import files
from loractl.artifacts.peft import updates
from loractl.artifacts.peft.adapter import Adapter, copy_tokenizer
from loractl.artifacts.peft.updates import Update
from loractl.engine.made_adapters import about_made, require_effect
from loractl.lora.algebra import Cut, resize


def write_resized(
    out: Path, adapter: Adapter, *, rank: int | None, energy: float | None
) -> dict[str, Any]:
    """Write the resized adapter; return what was kept of each module. Raises ArtifactError."""
    copied = updates.copies(adapter, doing="resized", with_rows=True)
    found = updates.updates(adapter)
    cuts = {
        name: resize(update.factors, rank=rank, energy=energy) for name, update in found.items()
    }
    require_effect(adapter.directory, [cut.norm for cut in cuts.values()])
    made = {"rank": rank} if rank is not None else {"energy": energy}
    report = _report_cuts(out, made, found, cuts)
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
        copy_tokenizer(adapter, directory)

    files.publish(out, write)
    return report


def _report_cuts(
    out: Path, made: Mapping[str, Any], found: Mapping[str, Update], cuts: Mapping[str, Cut]
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
