"""The two pictures: losses against the naive formula, and the README's chart of speed."""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import run, store
from bench.jobs import FULL, LORACTL, PLAIN, TRL_PACKED, TRL_PADDED

SPEED = run.ROOT / ".github" / "speed.svg"
WORKLOAD = "chats"
BARS = {
    LORACTL: "loractl",
    PLAIN: "plain PEFT loop",
    TRL_PADDED: "TRL, padded",
    TRL_PACKED: "TRL, packed",
    FULL: "full fine-tuning,\nplain loop",
}
HIGHLIGHT, OTHERS = "#0072b2", "#9aa5b1"  # told apart also by lightness
TITLE = {"fontsize": 14, "weight": "bold"}
INK, SOFT = "#1f2328", "#57606a"  # contrasts of 15 and 6 with white


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=SPEED, help="SVG file (%(default)s)")


def make(asked: argparse.Namespace) -> int:
    records = store.read(asked.results).get("speed", {})
    if WORKLOAD not in records:
        sys.exit(f"error: {asked.results} has no speed of {WORKLOAD}")
    speed(records[WORKLOAD], asked.out)
    return 0


def medians(record: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Tokens a second and peak GiB of each bar that was measured."""
    found = {}
    for job in BARS:
        runs = [one for one in record["jobs"].get(job, []) if "tokens_per_s" in one]
        if runs:
            peaks = [one["peak_rss_bytes"] / 2**30 for one in runs if "peak_rss_bytes" in one]
            speeds = [one["tokens_per_s"] for one in runs]
            found[job] = statistics.median(speeds), statistics.median(peaks)
    return found


def speed(record: Mapping[str, Any], path: Path) -> None:
    """A bar for each tool, its speed and its peak memory beside it; the same bytes each time."""
    pyplot = _pyplot()
    found, machine = medians(record), record["machine"]
    names = list(found)[::-1]  # the first on top
    speeds = [found[name][0] for name in names]
    colors = [HIGHLIGHT if name == LORACTL else OTHERS for name in names]
    # Letters as paths look the same everywhere; the ids of elements come from the salt.
    style = {"svg.fonttype": "path", "svg.hashsalt": "loractl", "font.size": 12}
    with pyplot.rc_context(style):
        figure = pyplot.figure(figsize=(6.2, 3.6), facecolor="white")
        figure.text(0.03, 0.92, "Training on chats: tokens/s and peak memory", color=INK, **TITLE)
        about = ", ".join([record["model"], machine["dtype"], f"{machine['cores']} cores"])
        figure.text(0.03, 0.85, f"{about}, {machine['cpu']}", color=SOFT, fontsize=9.5)
        axes = figure.add_axes((0.25, 0.03, 0.72, 0.77))
        axes.barh([BARS[name] for name in names], speeds, color=colors, height=0.66)
        for y, name in enumerate(names):
            told = f" {found[name][0]:.0f} tokens/s, {found[name][1]:.1f} GiB"
            weight = "bold" if name == LORACTL else "normal"
            axes.text(found[name][0], y, told, va="center", color=INK, weight=weight)
        axes.set_xlim(0, max(speeds) * 1.8)  # room for the words beside the longest bar
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=INK)
        axes.set_xticks([])
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def curves(ours: Sequence[float], naive: Sequence[float], dtype: str, path: Path) -> None:
    """Both curves of losses, and below them how far apart they are."""
    pyplot = _pyplot()
    steps = range(1, len(ours) + 1)
    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(7, 5), height_ratios=(2, 1), layout="constrained"
    )
    above.plot(steps, naive, label="naive formula, transformers", color="tab:orange", linewidth=3)
    above.plot(steps, ours, label="loractl train", color="tab:blue", linewidth=1)
    above.set_ylabel("training loss")
    above.set_title(f"{len(ours)} steps, {dtype}")
    above.legend()
    floor = 1e-9  # equal losses on a logarithmic axis
    below.semilogy(steps, [max(floor, abs(a - b)) for a, b in zip(ours, naive, strict=True)])
    below.set_ylabel("difference")
    below.set_xlabel("step")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
