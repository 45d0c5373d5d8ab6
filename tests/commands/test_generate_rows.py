"""`loractl generate --prompts`: what the model sees of a row is what training saw of its rows, and
what it does not see is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from tests.commands.test_generate import SHORT, ask
from tests.tiny import write_jsonl

Capture = pytest.CaptureFixture[str]


def test_a_prompt_has_the_reasoning_that_training_kept_and_what_is_not_seen_is_said(
    config_file: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    said = {"role": "assistant", "content": "<think>\nlook\n</think>\n\nYes."}
    plain = {**said, "content": "Yes."}
    asked = [{"role": "user", "content": "Is it 1?"}, said, {"role": "user", "content": "So?"}]
    train = write_jsonl(tmp_path / "turns.jsonl", [{"messages": [*asked, said]}])
    config = config_file(f"data: {{train: {train}, thoughts: drop}}", "train: {steps: 1}")
    assert main(["train", str(config)]) == 0
    rows: list[dict[str, Any]] = [
        {"messages": [*asked, said]},
        {"messages": [asked[0], plain, asked[2]], "toolz": 2},
        {"prompt": asked, "history": [["a", "b"]], "toolz": 1, "id": ""},
    ]
    run, file = tmp_path / "run", write_jsonl(tmp_path / "prompts.jsonl", rows)
    words = ("--prompts", str(file), "--adapter", str(run), "--json")

    def sizes() -> list[int]:
        return [json.loads(row)["prompt_tokens"] for row in ask(capsys, *words)]

    dropped = sizes()
    assert dropped[0] == dropped[1] == dropped[2]
    assert main(["generate", *SHORT, *words]) == 0
    note = "fields that nothing reads, and the rows with them: history (1), toolz (2)"
    assert note in capsys.readouterr().err
    about = json.loads((run / "adapter" / "loractl.json").read_text())
    about["rows"]["thoughts"] = "auto"
    (run / "adapter" / "loractl.json").write_text(json.dumps(about))
    kept = sizes()
    assert kept[0] == kept[2] > kept[1] == dropped[1]


def test_calls_that_the_template_leaves_out_of_a_prompt_are_refused_by_their_line(
    base: Any, tmp_path: Path, capsys: Capture
) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": 1}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    asked = [{"role": "user", "content": "hi"}, calling, {"role": "tool", "content": "2"}]
    row: dict[str, object] = {"messages": asked}
    file = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "fine"}, row])
    assert main(["generate", "--prompts", str(file), "--model", str(base("llama"))]) == 2
    assert f"{file}:2: messages[1]: the chat template leaves out" in capsys.readouterr().err
