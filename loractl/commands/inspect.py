"""`loractl inspect`: the structure of an adapter, and its overlap with another one.

Reads only the adapter's files; its base is not needed.
"""

import json
from pathlib import Path

from loractl import console
from loractl.commands.arguments import require_writable_file
from loractl.reports.figure import require_plot


def run(path: Path, *, against: Path | None, plot: Path | None, as_json: bool) -> int:
    """Print measurements of an adapter, as tables or JSON. Raises ArtifactError."""
    if plot is not None:
        require_plot(plot)
        require_writable_file("--plot", plot)

    from loractl.artifacts.peft import adapter as adapters
    from loractl.engine.inspect import examine_adapter
    from loractl.reports.inspect import as_text

    adapter = adapters.read(path)
    report = examine_adapter(adapter, None if against is None else adapters.read(against))
    if plot is not None:
        from loractl.reports.inspect_plot import draw_spectra

        spectra = {name: one["singular_values"] for name, one in report["modules"].items()}
        draw_spectra(plot, spectra)
        report["plot"] = str(plot)
    console.result(json.dumps(report, indent=2, allow_nan=False) if as_json else as_text(report))
    return 0
