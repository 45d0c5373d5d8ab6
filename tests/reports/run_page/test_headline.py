"""The head of a report: the sentence, the figures, and how far a run is."""

from dataclasses import replace

from loractl.reports.run_page import headline
from loractl.reports.run_page.content import STOPPED, TRAINING
from tests.reports.run_page.made import content, steps


def test_the_sentence_says_what_was_trained_for_how_long() -> None:
    run = content("base", settings={**content().settings, "model.name_or_path": "hub/some-model"})
    assert headline.lede(run) == "LoRA of rank 8 on some-model: 30 steps in 1m00s, finished."
    short = replace(
        run, metrics=steps(1), state=STOPPED, settings={**run.settings, "method": "full"}
    )
    assert headline.lede(short) == (
        "Full fine-tuning on some-model: 1 step in 2s, stopped before its end."
    )


def test_the_held_out_loss_is_that_of_the_published_step() -> None:
    rows = [{"step": step, "eval_loss": loss} for step, loss in ((0, 2.0), (10, 1.0), (20, 1.5))]
    best = replace(content(), metrics=rows, about={"step": 10})
    found = headline.held_out(best)
    assert found is not None and found.value == "2 → 1"
    live = headline.held_out(replace(best, about={}))
    assert live is not None and live.value == "2 → 1.5"
    first = headline.held_out(replace(best, metrics=rows[:1], about={}))
    assert first is not None and first.value == "2"
    assert headline.held_out(replace(best, metrics=[])) is None


def test_the_figures_are_those_of_the_run() -> None:
    found = {one.name: one for one in headline.facts(content())}
    assert found["Answers"].value == "0 → 1"
    assert found["Speed"].value == "50" and "1.00 GiB" in found["Speed"].remark
    assert found["Trained parameters"].value == "20 M"
    assert found["Trained parameters"].remark == "0.30% of the base's 6,738,415,616"
    plain = replace(content(), metrics=steps(4), notes=type(content().notes)(), estimate={})
    assert [one.name for one in headline.facts(plain)] == ["Training loss", "Speed"]
    assert [one.value for one in headline.facts(plain)][0] == "2 → 0.5"
    assert headline.facts(replace(plain, metrics=steps(1)))[0].value == "2"
    assert headline.facts(replace(plain, metrics=[])) == []


def test_progress_is_by_steps_or_by_epochs_and_the_rest_takes_as_long() -> None:
    live = replace(content(), state=TRAINING, metrics=steps(30))
    by_steps = replace(live, settings={**live.settings, "train.steps": 120, "train.epochs": None})
    assert headline.share_done(by_steps) == 0.25
    assert headline.seconds_left(by_steps) == 180.0
    by_epochs = replace(live, settings={**live.settings, "train.steps": None, "train.epochs": 4})
    assert headline.share_done(by_epochs) == 0.25
    unknown = replace(live, metrics=[], settings={**live.settings, "train.steps": None})
    assert headline.share_done(unknown) is None and headline.seconds_left(unknown) is None


def test_counts_are_short() -> None:
    assert [headline.short_count(n) for n in (7, 1234, 1_221_120, 6.7e9)] == [
        "7", "1.23 k", "1.22 M", "6.7 B"
    ]  # fmt: skip
