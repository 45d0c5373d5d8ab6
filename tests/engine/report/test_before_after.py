"""The answers in a report are those that `generate` gives, with the adapter and without."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from tests.engine.report.conftest import REPORTED, Config
from tests.runs import train
from tests.tiny import chat_rows, write_jsonl

Capture = pytest.CaptureFixture[str]


def answers(run: Path) -> list[dict[str, Any]]:
    found = json.loads((run / "report.json").read_text())["answers"]
    assert isinstance(found, list)
    return found


def generated(prompts: Path, capsys: Capture, *flags: str, limit: int) -> list[str]:
    capsys.readouterr()
    command = ["generate", "--json", "--prompts", str(prompts), "--max-new-tokens", str(limit)]
    assert main([*command, *flags]) == 0
    return [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_both_answers_are_those_of_generate(
    method: str, base: Callable[..., Path], config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    held_out = write_jsonl(tmp_path / "held.jsonl", chat_rows(10))
    rates = "train: {learning_rate: 3e-2, steps: 3}"
    config = config_file(*REPORTED, rates, f"data: {{eval: {held_out}}}", f"method: {method}")
    assert train(config) == 0
    found = answers(tmp_path / "run")
    assert [one["where"] for one in found] == [f"{held_out}:{n}" for n in range(1, 9)]
    assert [one["expected"] for one in found] == [f"{n} plus {n} is {2 * n}." for n in range(8)]
    prompts = write_jsonl(
        tmp_path / "prompts.jsonl", [{"messages": one["prompt"]} for one in found]
    )
    limit = max(len(one["base"]["text"]) for one in found) + 99  # cut below, as the report was
    tuned = ("--model", str(tmp_path / "run")) if method == "full" else (str(tmp_path / "run"),)
    for who, flags in (("base", ("--model", str(base("llama")))), ("tuned", tuned)):
        for one, text in zip(found, generated(prompts, capsys, *flags, limit=limit), strict=True):
            given = one[who]
            assert text.startswith(given["text"]) if given["is_cut"] else text == given["text"]
            assert given["is_right"] == (given["text"].strip() == one["expected"].strip())
    assert any(one["base"]["text"] != one["tuned"]["text"] for one in found)


def test_rows_without_an_answer_are_not_asked(config_file: Config, tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "held.jsonl", [{"text": "The quick brown fox."}])
    assert train(config_file(*REPORTED, f"data: {{eval: {texts}, train_on: all}}")) == 0
    assert answers(tmp_path / "run") == []
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No held-out row ends with an answer." in page


def test_a_run_that_holds_nothing_out_asks_nothing(config_file: Config, tmp_path: Path) -> None:
    assert train(config_file("train: {report: true, steps: 1}")) == 0
    assert answers(tmp_path / "run") == []
    assert "data.eval is not set" in (tmp_path / "run" / "report.html").read_text()
