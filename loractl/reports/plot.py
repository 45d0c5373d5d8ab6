"""The curves of one or more runs, from their metrics: losses, learning rate, gradient norm."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loractl.reports import figure as figures

Rows = Sequence[Mapping[str, Any]]

PANELS = (
    ("training loss", "loss"),
    ("held-out loss", "eval_loss"),
    ("learning rate", "lr"),
    ("gradient norm, before clipping", "grad_norm"),
)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Distinguishable with any color vision (Okabe and Ito)."""

NOISY, SMOOTHED = ("loss", "grad_norm"), 20
"""With at least this many steps, these are drawn pale with a moving average on top."""


def draw_runs(path: Path, runs: Mapping[str, Rows]) -> None:
    """Draw the runs over each other, one color each; `runs` maps a name to its metrics."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes: Any = figure.subplots(2, 2)
    for panel, (title, key) in zip(axes.flat, PANELS, strict=True):
        for number, (name, rows) in enumerate(runs.items()):
            color = COLORS[number % len(COLORS)]
            style = "-" if number < len(COLORS) else "--"
            _draw_curve(panel, rows, key, color, style, name)
            if key == "eval_loss":
                _draw_retained(panel, rows, color, name)
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("step", fontsize=9)
        if key == "lr":
            panel.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        if not panel.lines:
            panel.text(
                0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color="0.4"
            )
            panel.set(xticks=[], yticks=[])
    handles, names = axes.flat[0].get_legend_handles_labels()
    more = [pair for pair in zip(*axes.flat[1].get_legend_handles_labels(), strict=True)]
    for handle, name in more:
        if name not in names:
            handles, names = [*handles, handle], [*names, name]
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9)
    figures.save(figure, path)


def _draw_curve(panel: Any, rows: Rows, key: str, color: str, style: str, name: str) -> None:
    steps, values = points(rows, key)
    if not steps:
        return
    if key in NOISY and len(steps) >= SMOOTHED:
        panel.plot(steps, values, color=color, alpha=0.25, linewidth=0.8, linestyle=style)
        panel.plot(steps, averaged(values), color=color, linewidth=1.6, linestyle=style, label=name)
    else:
        dots = "o" if key == "eval_loss" or len(steps) == 1 else None
        panel.plot(
            steps, values, color=color, linewidth=1.6, linestyle=style, marker=dots, markersize=3,
            label=name,
        )  # fmt: skip


def _draw_retained(panel: Any, rows: Rows, color: str, name: str) -> None:
    steps, values = points(rows, "retain_loss")
    if steps:
        label = f"{name}, general text (data.retain)"
        panel.plot(steps, values, color=color, linewidth=1.2, linestyle=":", label=label)


def points(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the rows that have a value; a skipped step has none."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def averaged(values: Sequence[float]) -> list[float]:
    """The exponential moving average over about a fortieth of the values, without its bias toward
    the first (Kingma and Ba, arXiv 1412.6980, section 3)."""
    decay = 1 - 1 / max(2.0, len(values) / 40)
    return list(_averages(values, decay))


def _averages(values: Sequence[float], decay: float) -> Iterator[float]:
    total, weight = 0.0, 0.0
    for value in values:
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        yield total / weight if weight else math.nan
