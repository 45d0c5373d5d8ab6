"""`loractl check`, run whole: what it shows, what it finds, and that it leaves nothing behind."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loractl.cli.main import main
from loractl.engine.check import step as check_step
from loractl.reports.check import as_text
from loractl.reports.findings import Finding, findings_as_text
from tests.tiny import chat_rows, write_jsonl

Config = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def check(config: Path, capsys: Capture, *options: str) -> dict[str, Any]:
    """The report of a check that passes."""
    assert main(["check", str(config), "--json", *options]) == 0, capsys.readouterr().err
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def chat_prompts(n: int) -> list[dict[str, object]]:
    """Short rows of prompt and completion, all different."""
    return [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(n)]


def finding(report: dict[str, Any], what: str) -> dict[str, str]:
    (found,) = [one for one in report["findings"] if one["what"] == what]
    return found


def test_a_good_config_passes_and_nothing_is_written(
    config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    config = config_file("data: {eval: 0.3}")
    before = sorted(tmp_path.rglob("*"))
    report = check(config, capsys)
    assert sorted(tmp_path.rglob("*")) == before
    assert report["ok"] and {one["state"] for one in report["findings"]} <= {"ok", "note"}
    assert report["data"]["train"]["rows"] + report["data"]["eval"]["rows"] == 12
    step = report["step"]
    assert step["loss"] > 0 and step["seconds"] > 0 and step["moved"] == step["tensors"] // 2
    assert finding(report, "held out")["state"] == "ok"
    assert main(["train", str(config)]) == 0


def test_the_preview_marks_exactly_what_is_trained(config_file: Config, capsys: Capture) -> None:
    config = config_file()
    report = check(config, capsys)
    assert len(report["preview"]) == 2
    parts = report["preview"][0]["parts"]
    assert [one["text"] for one in parts if one["trained"]] == ["0 plus 0 is 0.<|im_end|>"]
    assert "".join(one["text"] for one in parts).count("<|im_start|>") == 2
    assert main(["check", str(config)]) == 0
    out = capsys.readouterr().out
    assert "⟦0 plus 0 is 0.<|im_end|>⟧" in out and "\x1b" not in out
    assert re.search(r"checked in [\d.]+ s: [\d.]+ s for the step, [\d.]+ s for the rest", out)
    assert "train: " in out and "12 rows, 12 examples" in out


def test_weights_of_turns_are_said_to_be_read_where_a_token_has_one(
    config_file: Config, capsys: Capture, train_file: Path, tmp_path: Path
) -> None:
    def mask_of(*sections: str) -> str:
        return finding(check(config_file(*sections), capsys), "mask")["text"]

    plain = mask_of()
    assert "tokens are trained" in plain and "weigh" not in plain
    rows: Any = chat_rows()
    rows[3]["messages"][1]["weight"] = 0.5
    weighted = write_jsonl(tmp_path / "weighted.jsonl", rows)
    assert mask_of(f"data: {{train: {weighted}}}") == f"{plain}, and weigh what their rows say"
    both = f"data: {{train: [{{path: {train_file}}}, {{path: {weighted}}}]}}"
    assert mask_of(both).endswith("weigh what their rows say")


def test_the_step_is_taken_on_the_heaviest_batch(config_file: Config, capsys: Capture) -> None:
    longest = check(config_file(), capsys)["data"]["train"]["longest"]
    report = check(config_file("data: {packing: false}", "train: {batch_size: 1}"), capsys)
    assert (report["step"]["rows"], report["step"]["length"]) == (1, longest)
    packed = check(config_file("train: {batch_size: 2}"), capsys)["step"]
    assert packed["rows"] == 2 and packed["tokens"] > longest


def test_rows_that_are_too_long_are_refused_with_a_histogram(
    config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    assert main(["check", str(config_file("data: {max_length: 60}"))]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "<- data.max_length" in err
    assert "would keep 99% of the rows" in err and "would lose tokens of an answer" in err
    assert not (tmp_path / "run").exists()


def test_rows_that_lose_their_answer_are_named(config_file: Config, capsys: Capture) -> None:
    report = check(config_file("data: {max_length: 60, too_long: truncate}"), capsys)
    cut = finding(report, "truncated")
    assert cut["state"] == "note" and "part of an answer is lost" in cut["text"]
    lost = finding(report, "no answer")["text"]
    assert "the whole answer of" in lost and "would keep 99% of the rows whole" in lost


@pytest.mark.parametrize("too_long", ["truncate", "drop"])
def test_no_limit_is_advised_that_is_above_the_positions_of_the_model(
    too_long: str, config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    long = {"prompt": "So.", "completion": "Why? " * 400}
    path = write_jsonl(tmp_path / "long.jsonl", [long, *chat_prompts(9)])
    config = config_file(f"data: {{train: {path}, max_length: 64, too_long: {too_long}}}")
    assert main(["check", str(config)]) == 0
    out, err = capsys.readouterr()
    told = " ".join((out + err).split())
    assert "no data.max_length keeps 99% of the rows whole" in told and "512 positions" in told
    assert "would keep 99%" not in told
    write_jsonl(path, [long, long])
    assert main(["check", str(config)]) == (0 if too_long == "truncate" else 2)
    assert "would keep 99%" not in capsys.readouterr().err


def test_empty_answers_are_counted_by_check_and_train(
    config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    rows = [*chat_prompts(9), *({"prompt": f"Say {n}.", "completion": " "} for n in range(2))]
    config = config_file(f"data: {{train: {write_jsonl(tmp_path / 'rows.jsonl', rows)}}}")
    words = "2 rows have an empty answer (lines 10, 11), which teaches the model to say nothing"
    found = finding(check(config, capsys), "empty answers")
    assert found["state"] == "note" and words in found["text"]
    assert main(["train", str(config)]) == 0
    assert f"note: {tmp_path / 'rows.jsonl'}: {words}" in capsys.readouterr().err


def test_a_row_longer_than_the_model_is_not_told_to_raise_the_limit(
    config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    row = {"prompt": "Why? " * 400, "completion": "So."}
    path = write_jsonl(tmp_path / "long.jsonl", [row, *({**row, "prompt": "Why?"} for _ in "ab")])
    assert main(["check", str(config_file(f"data: {{train: {path}, max_length: 4096}}"))]) == 2
    err = capsys.readouterr().err
    assert "line 1 is longer than the 512 positions that the model has" in err
    assert "use a model with more positions" in err and "raise it" not in err


def test_held_out_rows_that_are_trained_on_are_found(
    config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", chat_rows(3))
    found = finding(check(config_file(f"data: {{eval: {held}}}"), capsys), "held out")
    assert found["state"] == "fix" and found["text"].startswith("3 training rows")


def test_a_template_that_opens_generation_otherwise_is_found(
    config_file: Config, capsys: Capture, tmp_path: Path, base: Callable[..., Path]
) -> None:
    import shutil

    model = tmp_path / "thinking"
    shutil.copytree(base("llama"), model)
    template = model / "chat_template.jinja"
    text = template.read_text()
    template.write_text(text.replace("assistant\n' }}{% endif %}", "assistant\n<x>' }}{% endif %}"))
    assert template.read_text() != text
    found = finding(check(config_file(model=model), capsys), "prompt")
    assert found["state"] == "note" and "<x>" in found["text"]
    capsys.readouterr()
    assert main(["train", str(config_file("train: {steps: 1}", model=model))]) == 0
    assert "generation sees other tokens than training" in capsys.readouterr().err
    assert main(["train", str(config_file("train: {steps: 1}")), "--overwrite"]) == 0
    assert "generation sees" not in capsys.readouterr().err


def test_tools_that_the_template_leaves_out_are_told(
    config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    rows = [{**row, "tools": [tool]} for row in chat_rows()]
    path = write_jsonl(tmp_path / "tools.jsonl", rows)
    found = finding(check(config_file(f"data: {{train: {path}}}"), capsys), "tools")
    assert found["state"] == "note" and "12 of 12 rows declare tools" in found["text"]


def test_an_unusual_learning_rate_is_told(config_file: Config, capsys: Capture) -> None:
    for rate, state in (("1e-6", "note"), ("1e-2", "ok"), ("0.5", "note")):
        config = config_file("train: {steps: 2}")
        report = check(config, capsys, "--set", f"train.learning_rate={rate}")
        assert finding(report, "learning rate")["state"] == state, rate


def test_a_run_that_is_there_forbids_what_train_would_not_start(
    config_file: Config, capsys: Capture
) -> None:
    config = config_file()
    assert main(["train", str(config)]) == 0
    capsys.readouterr()
    assert main(["check", str(config)]) == 3
    out, err = capsys.readouterr()
    assert "trained tokens" in out and "use --resume" in err


def test_full_fine_tuning_is_checked_too(config_file: Config, capsys: Capture) -> None:
    report = check(config_file("method: full", "train: {learning_rate: 5.0e-5}"), capsys)
    assert report["ok"] and report["step"]["moved"] > 0


def test_a_file_that_reads_back_otherwise_fails_the_check(
    config_file: Config, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = check_step.write_trained

    def wrong(session: Any, path: Path, state: Any) -> None:
        right(session, path, state)
        with torch.no_grad():
            next(iter(session.parameters.values())).add_(1.0)

    monkeypatch.setattr(check_step, "write_trained", wrong)
    assert main(["check", str(config_file())]) == 4
    assert "the tensor read back differs from the one saved" in capsys.readouterr().err


def test_bad_rows_and_bad_keys_are_told_as_train_tells_them(
    config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", [*chat_rows(3), {"messages": [{"role": "asistant"}]}])
    assert main(["check", str(config_file(f"data: {{train: {bad}}}"))]) == 2
    assert "bad.jsonl:4: messages[0].role" in capsys.readouterr().err
    assert main(["check", str(config_file("lora: {rnak: 3}"))]) == 2
    assert "did you mean rank?" in capsys.readouterr().err


def test_colour_marks_trained_text_and_control_characters_are_shown_as_such() -> None:
    stretches = [(False, "a\x1b[31m\n"), (True, "b")]
    assert as_text(stretches, colour=True).endswith("\n\x1b[32mb\x1b[0m")
    plain = as_text(stretches, colour=False)
    assert plain.endswith("⟦b⟧") and "\x1b" not in plain
    assert "1,300 characters" in as_text([(False, "x" * 2000)], colour=False)


def test_findings_to_act_on_come_last() -> None:
    found = [Finding("fix", "a", "1"), Finding("ok", "bc", "2"), Finding("note", "d", "3")]
    assert findings_as_text(found, colour=False) == ["ok    bc  2", "note  d   3", "fix   a   1"]


def test_findings_are_wrapped_beside_their_names() -> None:
    found = [Finding("ok", "bc", "one two three four five six seven")]
    lines = findings_as_text(found, colour=False, width=30)
    assert lines == ["ok    bc  one two three four", "          five six seven"]
    narrow = findings_as_text(found, colour=False, width=20)
    assert narrow == ["ok    bc", "      one two three", "      four five six", "      seven"]


def test_the_report_is_wrapped_between_words_at_60_columns(
    config_file: Config, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loractl.console.width", lambda: 60)
    assert main(["check", str(config_file("data: {eval: 0.3}"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(lines) if line == "train:")  # a long path
    report = [
        line for line in lines[start:] if "tokens  " not in line
    ]  # bars are drawn as they are
    assert all(len(line) <= 60 or " " not in line.strip() for line in report), report
    words = " ".join(report).split()
    assert {"data.packing:", "train.steps:", "gradient_accumulation"} <= set(words)
