"""Which of several runs is better: by the paired bootstrap where rows are known, else by means."""

from dataclasses import replace
from typing import Any

import numpy as np

from loractl.evaluation.bootstrap import ratio
from loractl.records import HeldOutLoss
from loractl.reports.run_page.comparison import (
    differing_settings,
    names_of,
    page_of_runs,
    ranks,
)
from loractl.reports.run_page.content import RunContent
from tests.reports.run_page.made import content, steps

COUNTS = [4.0, 5.0, 6.0, 5.0, 4.0, 3.0, 5.0, 6.0]


def measured(name: str, sums: list[float], **changed: Any) -> RunContent:
    return replace(content(name), held_out=HeldOutLoss(sums, COUNTS[: len(sums)]), **changed)


def losses(shift: float, noise: float, seed: int) -> list[float]:
    draw = np.random.RandomState(seed)
    return [c * (2 + shift) + noise * draw.randn() for c in COUNTS]


def alike(*runs: RunContent) -> dict[str, RunContent]:
    """Runs on the same held-out rows, by name."""
    return {run.name: replace(run, accounts={"eval": {"sha256": "same"}}) for run in runs}


def test_the_lowest_is_first_and_the_interval_is_that_of_the_paired_bootstrap() -> None:
    low, high = losses(0.0, 0.1, 1), losses(0.5, 0.1, 2)
    first, second = ranks(alike(measured("high", high), measured("low", low)))
    assert (first.name, first.verdict, first.difference) == ("low", "lowest", "")
    found = ratio(high, COUNTS, less=low)
    expected = f"+{found.value:.4f}, 95% interval {found.low:+.4f} to {found.high:+.4f}"
    assert (second.name, second.verdict, second.difference) == ("high", "higher", expected)


def test_a_difference_within_its_error_is_not_called_one() -> None:
    runs = alike(measured("a", losses(0.0, 2.0, 3)), measured("b", losses(0.01, 2.0, 4)))
    assert ranks(runs)[1].verdict == "no clear difference: the interval holds zero"


def test_where_rows_are_unknown_or_others_only_the_means_stand() -> None:
    best = measured("best", losses(0.0, 0.1, 1))
    mean = replace(content("mean"), held_out=None, metrics=[{"step": 3, "eval_loss": 2.5}])
    other = replace(measured("other", losses(0.2, 0.1, 1)), accounts={"eval": {"sha256": "x"}})
    one = measured("one", [9.0])
    found = {r.name: r.verdict for r in ranks({**alike(best, mean, one), "other": other})}
    assert found["mean"] == "only the means are known"
    assert "not comparable" in found["other"] and "not comparable" in found["one"]
    single = alike(measured("a", [8.0]), measured("b", [9.0]))
    assert ranks(single)[1].verdict == "only one held-out row"


def test_a_run_without_a_held_out_loss_has_no_place() -> None:
    bare = replace(content("bare"), held_out=None, metrics=steps(3))
    assert ranks({"bare": bare}) == []
    page = page_of_runs([bare, replace(bare, name="other")])
    assert "No run has a held-out loss" in page


def test_settings_that_differ_are_listed_with_each_value() -> None:
    a = content("a")
    b = replace(a, settings={**a.settings, "lora.rank": 16, "out": "elsewhere", "new.key": 1})
    assert differing_settings({"a": a, "b": b}) == [
        ["lora.rank", "8", "16"],
        ["new.key", "null", "1"],
    ]
    assert "All settings are the same." in page_of_runs([a, replace(a, name="again")])


def test_names_that_are_alike_are_told_apart() -> None:
    a, b = (replace(content("run"), path=path) for path in ("x/run", "y/run"))
    assert names_of([a, b]) == ["x/run", "y/run"]
    assert names_of([a, a]) == ["x/run (1)", "x/run (2)"]
    assert names_of([a, content("other")]) == ["run", "other"]


def test_the_page_has_the_figures_of_each_run() -> None:
    page = page_of_runs(
        list(
            alike(
                measured("first", losses(0, 0.1, 1)), measured("second", losses(1, 0.1, 2))
            ).values()
        )
    )
    for said in ("first", "second", "Lowest held-out loss", "answers as expected", "1 of 1", "30"):
        assert said in page
