"""`loractl plot`: the curves of one or more runs in one figure."""

from pathlib import Path

from loractl import console
from loractl.artifacts.run import metrics
from loractl.artifacts.run.directory import RunDir, Status
from loractl.commands.arguments import require_writable_file
from loractl.errors import ConfigError
from loractl.reports.figure import require_plot
from loractl.text import printable


def run(runs: list[Path], out: Path) -> int:
    """Draw the metrics of runs, finished or not. Raises ConfigError if one is not a run."""
    require_plot(out, "--out")
    require_writable_file("--out", out)
    read = {}
    for path, name in zip(runs, _names(runs), strict=True):
        rows = metrics.read(RunDir(path).metrics)
        if not rows:
            found = (
                "no steps yet"
                if _is_run(path) or RunDir(path).metrics.is_file()
                else "not a run directory (no metrics.jsonl)"
            )
            raise ConfigError(printable(f"{path}: {found}"))
        read[name] = rows

    from loractl.reports.plot import draw_runs

    draw_runs(out, read)
    console.result(str(out))
    return 0


def _is_run(path: Path) -> bool:
    try:
        return RunDir(path).status() is not Status.ABSENT
    except ConfigError:
        return False


def _names(runs: list[Path]) -> list[str]:
    """The last component of each path, or the whole path if two runs share it."""
    short = [path.resolve().name for path in runs]
    return [
        name if short.count(name) == 1 else str(path)
        for name, path in zip(short, runs, strict=True)
    ]
