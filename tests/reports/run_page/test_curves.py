"""The charts of a report show what the metrics hold, and nothing where they hold nothing."""

from loractl.reports.run_page.curves import charts_of_run, charts_of_runs
from tests.reports.run_page.made import steps


def test_each_measure_has_a_chart_and_what_was_not_measured_has_none() -> None:
    rows = [*steps(5), {"step": 5, "eval_loss": 1.0, "retain_loss": 3.0}]
    titles = [chart.title for chart in charts_of_run(rows)]
    assert titles == [
        "Training loss", "Held-out loss", "Learning rate", "Gradient norm, before clipping",
        "Speed", "Memory, the peak so far",
    ]  # fmt: skip
    assert "Held-out loss" not in [chart.title for chart in charts_of_run(steps(5))]
    assert charts_of_run([]) == [] and charts_of_runs({"a": []}) == []


def test_a_long_noisy_curve_is_drawn_with_its_average_and_a_short_one_alone() -> None:
    assert [name for _, name in charts_of_run(steps(30))[0].legend] == [
        "each step",
        "moving average",
    ]
    assert len(charts_of_run(steps(5))[0].legend) == 1
    speed = next(chart for chart in charts_of_run(steps(30)) if chart.title == "Speed")
    assert [name for _, name in speed.legend] == ["moving average"]


def test_a_single_step_is_a_dot_and_memory_is_in_gib_from_zero() -> None:
    charts = {chart.title: str(chart.drawing) for chart in charts_of_run(steps(1))}
    assert charts["Training loss"].count("<circle") == 1
    memory = charts["Memory, the peak so far"]
    assert "from 1 at step 1 to 1 at step 1" in memory and ">0</text>" in memory


def test_general_text_has_a_curve_of_its_own() -> None:
    rows = [{"step": 1, "eval_loss": 1.0, "retain_loss": 3.0}, {"step": 2, "eval_loss": 0.5}]
    (chart,) = charts_of_run(rows)
    assert [name for _, name in chart.legend] == ["held-out rows", "general text"]
    assert "held-out rows from 1 at step 1 to 0.5 at step 2; general text from 3" in chart.drawing


def test_several_runs_are_over_each_other_each_with_its_color() -> None:
    loss = charts_of_runs({"a": steps(3), "b": steps(30), "c": []})[0]
    assert [name for _, name in loss.legend] == ["a", "b"]
    assert len({kind for kind, _ in loss.legend}) == 2 and str(loss.drawing).count("<path") == 2
