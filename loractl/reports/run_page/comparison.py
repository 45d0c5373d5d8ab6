"""Several runs beside each other: their curves, which is better and by how much, and what differs.

Which one is better is decided by the held-out loss, and by how much from the losses by groups of
rows that checkpoints keep: the same rows in both runs, so that the difference is a paired one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loractl import __version__, text
from loractl.evaluation.bootstrap import ratio
from loractl.reports.page.frame import render
from loractl.reports.run_page import curves, headline
from loractl.reports.run_page.content import RunContent
from loractl.reports.run_page.headline import Fact
from loractl.reports.run_page.numbers import last, training_seconds
from loractl.reports.run_page.page import STYLE, encodable
from loractl.reports.run_page.provenance import setting

UNINTERESTING = ("out",)
"""Settings that differ between any two runs."""


@dataclass(frozen=True)
class Rank:
    """A run's place: its held-out loss, and how much higher it is than the best one's."""

    name: str
    loss: str
    difference: str
    verdict: str


def page_of_runs(runs: Sequence[RunContent]) -> str:
    """The page that compares runs, as HTML."""
    named = dict(zip(names_of(runs), runs, strict=True))
    title = f"{len(runs)} runs · loractl report"
    values = {
        "version": __version__,
        "names": list(named),
        "facts": _facts(named),
        "ranks": [[one.name, one.loss, one.difference, one.verdict] for one in ranks(named)],
        "charts": curves.charts_of_runs({name: run.metrics for name, run in named.items()}),
        "results": _results(named),
        "differing": differing_settings(named),
    }
    page = render("run_page/comparison.html.jinja", values, title=title, styles=[STYLE])
    return encodable(page)


def names_of(runs: Sequence[RunContent]) -> list[str]:
    """The name of each run, or its path, numbered if need be, where two would be alike."""
    short = [run.name for run in runs]
    found = [name if short.count(name) == 1 else run.path for name, run in
             zip(short, runs, strict=True)]  # fmt: skip
    return [
        name if found.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(found, start=1)
    ]


def ranks(runs: Mapping[str, RunContent]) -> list[Rank]:
    """The runs that have a held-out loss, the best first."""
    measured = {name: run for name, run in runs.items() if mean_loss(run) is not None}
    order = sorted(measured, key=lambda name: mean_loss(measured[name]) or 0.0)
    return [_rank(name, measured[name], measured[order[0]]) for name in order]


def mean_loss(run: RunContent) -> float | None:
    """The held-out loss of what a run publishes, or of its newest evaluation."""
    return run.held_out.mean if run.held_out else last(run.metrics, "eval_loss")


def _rank(name: str, run: RunContent, best: RunContent) -> Rank:
    loss, least = mean_loss(run), mean_loss(best)
    assert loss is not None and least is not None
    if run is best:
        return Rank(name, f"{loss:.4f}", "", "lowest")
    difference = f"+{loss - least:.4f}"
    if (why := _why_no_interval(run, best)) is not None:
        return Rank(name, f"{loss:.4f}", difference, why)
    assert run.held_out is not None and best.held_out is not None
    found = ratio(run.held_out.sums, run.held_out.counts, less=best.held_out.sums)
    is_clear = found.low > 0
    return Rank(
        name,
        f"{loss:.4f}",
        f"+{found.value:.4f}, 95% interval {found.low:+.4f} to {found.high:+.4f}",
        "higher" if is_clear else "no clear difference: the interval holds zero",
    )


def _why_no_interval(run: RunContent, best: RunContent) -> str | None:
    one, other = run.held_out, best.held_out
    if one is None or other is None:
        return "only the means are known"
    if held_out_hashes(run) != held_out_hashes(best) or one.counts != other.counts:
        return "other held-out rows or tokens, so the two are not comparable"
    if len(one.sums) < 2:
        return "only one held-out row"
    return None


def held_out_hashes(run: RunContent) -> list[Any]:
    """What identifies the held-out rows of a run."""
    accounts = [one for name, one in run.accounts.items() if name.startswith("eval")]
    return [one.get("sha256") for one in accounts if isinstance(one, dict)]


def differing_settings(runs: Mapping[str, RunContent]) -> list[list[str]]:
    """(key, the value in each run) of the settings that are not the same in all."""
    keys = dict.fromkeys(key for run in runs.values() for key in run.settings)
    rows = []
    for key in keys:
        values = [run.settings.get(key) for run in runs.values()]
        if key not in UNINTERESTING and any(value != values[0] for value in values):
            rows.append([key, *map(setting, values)])
    return rows


def _facts(runs: Mapping[str, RunContent]) -> list[Fact]:
    found = ranks(runs)
    if not found:
        return []
    best = Fact("Lowest held-out loss", found[0].loss, found[0].name)
    if len(found) < 2:
        return [best]
    second = found[1]
    return [
        best,
        Fact(
            "The next, above it",
            second.difference.partition(",")[0],
            f"{second.name}: {second.verdict}",
        ),
    ]


def _results(runs: Mapping[str, RunContent]) -> list[list[str]]:
    """The figures of each run, as the columns of a table whose rows are named."""
    columns = [_figures(run) for run in runs.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, "") for column in columns)] for name in names]


def _figures(run: RunContent) -> dict[str, str]:
    loss, trained = mean_loss(run), headline.trained_parameters(run)[0]
    final, peak = last(run.metrics, "loss"), last(run.metrics, "peak_memory_bytes")
    general = last(run.metrics, "retain_loss")
    found = {
        "state": headline.STATES[run.state],
        "steps": f"{headline.done_steps(run):,}",
        "held-out loss": f"{loss:.4f}" if loss is not None else "",
        "loss on general text": f"{general:.4f}" if general is not None else "",
        "training loss, last step": f"{final:.4f}" if final is not None else "",
        "trained parameters": f"{trained:,}" if trained else "",
        "time in steps": text.duration(training_seconds(run.metrics)),
        "peak memory": text.size(peak) if peak else "",
    }
    if run.notes.answers:
        right = sum(one.tuned.is_right for one in run.notes.answers)
        found["answers as expected"] = f"{right} of {len(run.notes.answers)}"
    return {name: value for name, value in found.items() if value}
