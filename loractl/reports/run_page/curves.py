"""The curves of one run or of several over each other, from their metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from loractl.reports.page import svg
from loractl.reports.plot import NOISY, SMOOTHED, averaged
from loractl.reports.run_page.numbers import Points, Rows, points, thinned

WIDTH, HEIGHT = 340, 220
"""Of a chart: what a phone is wide, so that its text is not shrunk there."""
GIB = 1024**3
EACH, MEAN = "each step", "moving average"
COLORS = tuple(f"part-{number}" for number in (2, 5, 7, 3, 6, 8, 4, 1))
"""Of several runs, in their order."""


@dataclass(frozen=True)
class Panel:
    """A chart: its title, the keys of metrics.jsonl that it shows, and their unit."""

    title: str
    keys: Mapping[str, str]  # key -> its name in the legend
    unit: str = ""
    divisor: float = 1
    from_zero: bool = False  # the axis


PANELS = (
    Panel("Training loss", {"loss": EACH}, "nats a token"),
    Panel(
        "Held-out loss",
        {"eval_loss": "held-out rows", "retain_loss": "general text"},
        "nats a token",
    ),
    Panel("Learning rate", {"lr": EACH}, from_zero=True),
    Panel("Gradient norm, before clipping", {"grad_norm": EACH}, from_zero=True),
    Panel("Speed", {"tokens_per_s": EACH}, "tokens a second", from_zero=True),
    Panel("Memory, the peak so far", {"peak_memory_bytes": EACH}, "GiB", GIB, from_zero=True),
)


@dataclass(frozen=True)
class Chart:
    """A drawn panel and what its colors mean: (class, name)."""

    title: str
    drawing: Markup
    legend: Sequence[tuple[str, str]]


def charts_of_run(rows: Rows) -> list[Chart]:
    """The panels that have something to show of one run."""
    return [chart for panel in PANELS if (chart := _of_one(panel, rows)) is not None]


def charts_of_runs(runs: Mapping[str, Rows]) -> list[Chart]:
    """The same, each with the curve of every run; general text is left to the runs' own pages."""
    return [chart for panel in PANELS if (chart := _of_several(panel, runs)) is not None]


def _of_one(panel: Panel, rows: Rows) -> Chart | None:
    series: dict[str, Points] = {}
    classes: dict[str, str] = {}
    for color, (key, name) in zip(COLORS, panel.keys.items(), strict=False):
        curve = _in_units(panel, points(rows, key))
        if not curve:
            continue
        if is_noisy(key, curve):
            series |= {name: thinned(curve), MEAN: thinned(_averaged(curve))}
            classes |= {name: f"{color} faint", MEAN: color}
        elif is_jumpy(key, curve):
            series[MEAN], classes[MEAN] = thinned(_averaged(curve)), color
        else:
            series[name], classes[name] = thinned(curve), color
    return _drawn(panel, series, classes) if series else None


def _of_several(panel: Panel, runs: Mapping[str, Rows]) -> Chart | None:
    key = next(iter(panel.keys))
    series: dict[str, Points] = {}
    classes: dict[str, str] = {}
    for number, (name, rows) in enumerate(runs.items()):
        curve = _in_units(panel, points(rows, key))
        if curve:
            smooth = is_noisy(key, curve) or is_jumpy(key, curve)
            series[name] = thinned(_averaged(curve) if smooth else curve)
            classes[name] = COLORS[number % len(COLORS)]
    return _drawn(panel, series, classes) if series else None


def is_noisy(key: str, curve: Points) -> bool:
    """Whether a curve is easier to read averaged."""
    return key in NOISY and len(curve) >= SMOOTHED


def is_jumpy(key: str, curve: Points) -> bool:
    """Whether a curve would be hidden by its own peaks: the time of single steps is uneven."""
    return key == "tokens_per_s" and len(curve) >= SMOOTHED


def _in_units(panel: Panel, curve: Points) -> Points:
    return [(step, value / panel.divisor) for step, value in curve]


def _averaged(curve: Points) -> Points:
    means = averaged([value for _, value in curve])
    return [(step, mean) for (step, _), mean in zip(curve, means, strict=True)]


def _drawn(panel: Panel, series: Mapping[str, Points], classes: Mapping[str, str]) -> Chart:
    few = max(map(len, series.values())) == 1 or "eval_loss" in panel.keys
    drawing = svg.lines(
        series,
        label=f"{panel.title}: {_in_words(series)}",
        classes=classes,
        x_name="step",
        y_name=panel.unit,
        width=WIDTH,
        height=HEIGHT,
        dots=few,
        from_zero=panel.from_zero,
    )
    return Chart(panel.title, drawing, [(classes[name], name) for name in series])


def _in_words(series: Mapping[str, Points]) -> str:
    """First and last value of each curve, for those who do not see it."""
    return "; ".join(
        f"{name} from {curve[0][1]:.4g} at step {curve[0][0]:g} to {curve[-1][1]:.4g} at step"
        f" {curve[-1][0]:g}"
        for name, curve in series.items()
    )
