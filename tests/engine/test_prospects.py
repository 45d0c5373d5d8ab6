"""Runs that will not learn are told beforehand, by `check` and `train`; others are not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from loractl.engine import prospects
from loractl.engine.optimizer import judge_optimizer, judge_rate
from loractl.records import UNTRAINED, Example
from loractl.reports.findings import Finding
from tests.tiny import chat_rows, write_jsonl

Config = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


def example(*ids: int, trained: int = 1) -> Example:
    """An example whose last `trained` tokens are trained."""
    labels = [UNTRAINED] * (len(ids) - trained) + list(ids[len(ids) - trained :])
    return Example(list(ids), labels, line=1)


@pytest.mark.parametrize(
    ("steps", "epochs", "unpacked", "words"),
    [
        (3, 3.0, 22.0, ["only 3 optimizer steps", "data.packing: false (about 66 steps)"]),
        (3, 1.0, 22.0, ["data.packing: false (about 22 steps)", "train.epochs: 5"]),
        (10, 1.0, 10.0, ["set train.epochs: 10 (about 100 steps)"]),
        (30, 2.0, None, ["set train.epochs: 7 (about 100 steps)"]),
        (49, None, None, ["set train.steps: 100"]),
    ],
)
def test_few_steps_are_told_with_the_setting_that_makes_more(
    steps: int, epochs: float | None, unpacked: float | None, words: list[str]
) -> None:
    found = prospects.judge_steps(steps, epochs=epochs, unpacked=unpacked)
    assert found.state == "note" and all(word in found.text for word in words), found.text
    assert prospects.judge_steps(50, epochs=epochs, unpacked=unpacked).state == "ok"


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_a_rate_ten_times_off_the_rule_is_told_with_the_usual_one(method: str) -> None:
    usual = prospects.usual_rate(4096, "llama", method)
    for times, words in ((12, "12 times"), (1 / 12, "1/12 of"), (0, "nothing is learned")):
        found = judge_rate(times * usual, method, usual)
        assert found.state == "note" and words in found.text, found.text
        assert f"set train.learning_rate: {usual:.2g}" in found.text
    for times in (1 / 9, 1, 9):
        assert judge_rate(times * usual, method, usual).state == "ok"


def test_the_rule_for_lion_is_below_that_for_adamw_whose_rate_is_too_high_for_it() -> None:
    usual = prospects.usual_rate(4096, "llama", "lora")
    assert judge_rate(0.2 * usual, "lora", usual, "lion").state == "ok"
    found = judge_rate(usual, "lora", usual, "lion")
    assert found.state == "note" and f"set train.learning_rate: {0.2 * usual:.2g}" in found.text
    assert "0.2 times that of adamw" in found.text and "5 times what is usual" in found.text
    assert judge_rate(usual, "lora", usual, "adafactor").state == "ok"


def test_sgd_is_told_when_its_rate_is_one_of_adamw() -> None:
    usual = prospects.usual_rate(4096, "llama", "lora")
    found = judge_rate(2e-4, "lora", usual, "sgd")
    assert found.state == "note" and "between 0.1 and 1" in found.text
    assert judge_rate(0.1, "lora", usual, "sgd").state == "ok"


@pytest.mark.parametrize(
    ("name", "device", "shape", "words"),
    [
        ("adamw-8bit", "cpu", (8, 500), "fewer than 4,096 values"),
        ("adamw-paged", "cpu", (64, 4096), "without a GPU there is nothing to page"),
        ("adamw-paged", "cuda", (8, 4096), "no trained tensor has 100,000 values"),
    ],
)
def test_state_that_is_not_stored_as_its_name_says_is_told(
    name: str, device: str, shape: tuple[int, ...], words: str
) -> None:
    found = judge_optimizer(name, device, [shape])
    assert found.state == "note" and words in found.text and "AdamW in 32 bits" in found.text


@pytest.mark.parametrize(
    ("name", "device", "shape"),
    [("adamw-8bit", "cpu", (64, 64)), ("adamw-paged", "cuda", (64, 4096)), ("lion", "cpu", (1,))],
)
def test_state_that_is_stored_as_its_name_says_is_not(
    name: str, device: str, shape: tuple[int, ...]
) -> None:
    assert judge_optimizer(name, device, [(3,), shape]).state == "ok"


def test_the_rule_for_full_fine_tuning_is_a_tenth_of_that_for_lora() -> None:
    lora = prospects.usual_rate(4096, "llama", "lora")
    assert prospects.usual_rate(4096, "llama", "full") == pytest.approx(lora / 10)
    assert lora == pytest.approx(2.86e-4, rel=0.01)  # tinker-cookbook, Llama-3.1-8B


def test_answers_that_are_all_alike_are_told() -> None:
    found = prospects.judge_answers([example(1, 2, 9), example(3, 9), example(4, 5, 9)])
    assert found.state == "note" and "all 3 rows have the same answer" in found.text
    assert "data.columns" in found.text
    for other in ([example(1, 9), example(1, 8)], [example(1, 9)], [example(1, 8, 9, trained=2)]):
        assert prospects.judge_answers(other).state == "ok"


def test_few_held_out_rows_are_told_with_a_share_that_is_enough() -> None:
    found = prospects.judge_held_out(5, 95, rows=5)
    assert found.state == "note" and "a share of at least 0.2" in found.text
    assert "more rows" in prospects.judge_held_out(5, 7, rows=5).text  # no share is enough
    assert prospects.judge_held_out(1, 95, rows=1).text.startswith("only 1 row is held out,")
    assert prospects.judge_held_out(20, 95, rows=20).state == "ok"


def test_copies_are_no_held_out_rows_of_their_own() -> None:
    held = [example(1, n) for n in range(5)] * 8
    assert prospects.independent([], held) == 5
    assert prospects.independent([example(1, 4), example(1, 9)], held) == 4
    found = prospects.judge_held_out(5, 360, rows=40)
    assert found.state == "note" and "a share of at least 0.4" in found.text
    assert found.text.startswith("only 5 different rows are held out, as 35 of 40 are copies")
    assert "more rows" in prospects.judge_held_out(5, 100, rows=40).text
    assert prospects.judge_held_out(0, 100, rows=40).text.startswith("only 0 different rows")
    assert "20 of 40 are copies" in prospects.judge_held_out(20, 100, rows=40).text


def test_check_counts_the_different_rows_that_a_share_holds_out(
    config_file: Config, tmp_path: Path, capsys: Captured
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", chat_rows(20) * 8)
    found = findings(config_file(f"data: {{train: {path}, eval: 0.5, packing: false}}"), capsys)
    assert found["eval rows"].state == "note" and "different rows are held out" in found[
        "eval rows"
    ].text  # fmt: skip


def test_held_out_rows_that_are_trained_on_are_counted() -> None:
    train = [example(1, 2, 3), example(1, 2, 3), example(4, 5)]
    found = prospects.judge_split(train, [example(1, 2, 3), example(7, 8)])
    assert found.state == "fix" and found.text.startswith("2 training rows are also held-out")
    assert prospects.judge_split(train, [example(1, 2, 4), example(1, 2)]).state == "ok"


def test_packed_rows_tell_how_many_examples_a_step_takes() -> None:
    found = prospects.judge_packing(173, 12, 8, 1024)
    assert found.state == "note" and "holds 14.4 examples" in found.text
    assert "a step takes about 115 examples" in found.text and "says 8" in found.text
    assert "173 examples" in prospects.judge_packing(173, 4, 8, 1024).text  # one step an epoch
    assert prospects.judge_packing(19, 10, 8, 1024).state == "ok"


def findings(config: Path, capsys: Captured) -> dict[str, Finding]:
    """What `check` says of the prospects, after `train` said the same."""
    capsys.readouterr()
    assert main(["check", str(config), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    found = {one["what"]: Finding(**one) for one in report["findings"]}
    assert main(["train", str(config)]) == 0
    said = capsys.readouterr().err
    before = said[: said.index("step 1")]
    for what in ("steps", "learning rate", "answers", "eval rows", "held out", "examples"):
        if what in found and found[what].text.startswith("data.eval is not set"):
            continue
        if what in found:
            is_said = f"note: {found[what].text}\n" in before
            assert is_said == (found[what].state != "ok"), (what, said)
    return found


def test_a_run_that_cannot_learn_is_told_everything(
    config_file: Config, tmp_path: Path, capsys: Captured
) -> None:
    rows = [{"prompt": f"What is {i}?", "completion": "No."} for i in range(12)]
    held = write_jsonl(tmp_path / "held.jsonl", rows[:3])
    data = f"data: {{train: {write_jsonl(tmp_path / 'rows.jsonl', rows)}, eval: {held}}}"
    found = findings(config_file(data, "train: {learning_rate: 1e-5}"), capsys)
    for what in ("steps", "learning rate", "answers", "eval rows", "examples"):
        assert found[what].state == "note", what
    assert found["held out"].state == "fix"


def test_a_run_that_may_learn_is_told_nothing(
    config_file: Config, tmp_path: Path, capsys: Captured
) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", chat_rows(40)[20:])
    path = write_jsonl(tmp_path / "rows.jsonl", chat_rows(20))
    data = f"data: {{train: {path}, eval: {held}, packing: false}}"
    found = findings(config_file(data, "train: {steps: 50, save_every: 50}"), capsys)
    for what in ("steps", "learning rate", "answers", "eval rows", "held out"):
        assert found[what].state == "ok", what
    assert "examples" not in found
