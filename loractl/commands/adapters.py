"""`loractl adapters resize`: the best adapter of a lower rank, and what it loses."""

import json
from pathlib import Path

from loractl import console
from loractl.commands.arguments import require_apart, require_free_or_adapter, require_size


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

    Raises ArtifactError for an adapter that is not a plain low-rank update, or changes nothing.
    """
    require_size(rank, energy)
    require_free_or_adapter(out, overwrite=overwrite)

    from loractl.artifacts.peft import adapter as adapters
    from loractl.engine.resize import write_resized
    from loractl.reports.adapters import resize_as_text

    adapter = adapters.read(path)
    require_apart(out, adapter.directory)
    report = write_resized(out, adapter, rank=rank, energy=energy)
    own = max(module["rank_before"] for module in report["modules"].values())
    if rank is not None and rank > own:
        console.note(f"note: no module has a rank above {own}; nothing was reduced")
    console.result(json.dumps(report, indent=2) if as_json else resize_as_text(report))
    return 0
