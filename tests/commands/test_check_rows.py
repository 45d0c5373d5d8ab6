"""What check says of rows whose parts are dropped, unread or odd, and what data.json records."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from tests.data.test_template_golden import template_tokenizer
from tests.data.test_thoughts import QWEN
from tests.tiny import save_tiny, write_jsonl

Config = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def setup(tmp_path: Path) -> Callable[..., Path]:
    def make(rows: list[Any], template: str = QWEN, more: str = "") -> Path:
        tokenizer = template_tokenizer("chatml")
        tokenizer.chat_template = template
        save_tiny(tmp_path / "base", tokenizer, "llama")
        write_jsonl(tmp_path / "rows.jsonl", rows)
        config = tmp_path / "config.yaml"
        config.write_text(
            f"model: {{name_or_path: {tmp_path / 'base'}}}\n"
            f"data: {{train: {tmp_path / 'rows.jsonl'}, max_length: 256{more}}}\n"
            f"train: {{steps: 2, batch_size: 1}}\nout: {tmp_path / 'run'}\n"
        )
        return config

    return make


def found(config: Path, capsys: Capture) -> dict[str, str]:
    assert main(["check", str(config), "--json"]) == 0, capsys.readouterr().err
    findings = json.loads(capsys.readouterr().out)["findings"]
    return {one["what"]: one["text"] for one in findings if one["state"] == "note"}


def thinking(number: int) -> dict[str, Any]:
    said = [("one", "4"), ("two", "6")]
    turns = [
        {"role": role, "content": content}
        for thought, answer in said
        for role, content in (
            ("user", f"{number}+{answer}?"),
            ("assistant", f"<think>\nadd {thought}\n</think>\n\n{answer}"),
        )
    ]
    return {"messages": turns}


def test_reasoning_that_is_dropped_is_counted_and_split_turns_keeps_it(
    setup: Callable[..., Path], capsys: Capture, tmp_path: Path
) -> None:
    rows = [thinking(number) for number in range(3)]
    assert "the reasoning of 3 earlier answers" in found(setup(rows), capsys)["thoughts"]
    config = setup(rows, more=", split_turns: true")
    assert main(["train", str(config)]) == 0
    account = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    assert (account["rows"], account["examples"], account["lost_thoughts"]) == (3, 6, 3)
    assert main(["train", str(setup(rows, more=", split_turns: true, train_on: all"))]) == 2
    assert "data.split_turns" in capsys.readouterr().err


def test_keep_is_refused_where_the_template_cannot(
    setup: Callable[..., Path], capsys: Capture
) -> None:
    config = setup([thinking(0)], more=", thoughts: keep")
    assert main(["check", str(config)]) == 2
    said = capsys.readouterr().err
    assert "rows.jsonl:1: messages[1]: data.thoughts: keep" in said and "split_turns: true" in said
    notes = found(setup([thinking(0)], more=", thoughts: keep, split_turns: true"), capsys)
    assert "as it does when the model answers" in notes["thoughts"]
    assert "data." not in notes["thoughts"], "there is nothing to change"
    last = found(setup([thinking(0)], more=", train_on: last"), capsys)["thoughts"]
    assert "as it does" in last and "data." not in last


def test_prompts_are_compared_before_the_answers_that_are_trained(
    setup: Callable[..., Path], capsys: Capture
) -> None:
    config = setup([thinking(number) for number in range(3)], more=", train_on: last")
    assert main(["check", str(config), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    (text,) = (one["text"] for one in findings if one["what"] == "prompt")
    assert text.startswith("before 3 answers, generation sees the same tokens")


def test_fields_that_nothing_reads_are_listed_with_their_counts(
    setup: Callable[..., Path], capsys: Capture
) -> None:
    rows = [
        {
            "id": number, "source": "web" if number else "",
            "messages": [
                {"role": "user", "content": f"{number}?", "name": "Ann", "time": 3},
                {"role": "assistant", "content": f"{number}!"},
            ],
        }
        for number in range(3)
    ]  # fmt: skip
    text = found(setup(rows), capsys)["unread"]
    assert "id (3), messages[].name (3), messages[].time (3), source (2)" in text
    for row in rows:
        row["messages"] *= 3
    again = found(setup(rows, more=", split_turns: true"), capsys)["unread"]
    assert again == text, "rows are counted, not their examples"
    reads = QWEN.replace("m.role ~ '\n'", "m.role ~ (m.name or '') ~ '\n'")
    assert reads != QWEN
    assert "messages[].name" not in found(setup(rows, reads), capsys)["unread"]


def test_prompts_that_are_rendered_already_are_noted(
    setup: Callable[..., Path], capsys: Capture
) -> None:
    for text, mark in (("<|im_start|>user\nhi<|im_end|>", "<|im_start|>"), ("[INST] hi", "[INST]")):
        rows = [{"prompt": text, "completion": "a"}, {"prompt": "hi", "completion": "b"}]
        said = found(setup(rows), capsys)["rendered"]
        assert said.startswith("train: line 1: ") and repr(mark) in said


def test_a_token_that_the_template_does_not_write_is_no_sign_of_rendering(
    setup: Callable[..., Path], capsys: Capture
) -> None:
    rows = [{"prompt": "<|new1|> hi", "completion": "<|new1|>a"}] * 2
    config = setup(rows)
    config.write_text(config.read_text().replace("}\ndata", ", add_tokens: ['<|new1|>']}\ndata"))
    assert "rendered" not in found(config, capsys)


def test_answers_that_end_with_the_end_token_are_noted(
    setup: Callable[..., Path], capsys: Capture
) -> None:
    turns = [{"role": role, "content": text} for role, text in (
        ("user", "a<|im_end|>"), ("assistant", "b<|im_end|>\n"), ("user", "c"),
        ("assistant", "d<|im_end|>"))]  # fmt: skip
    rows = [{"prompt": "hi", "completion": "a"}, {"prompt": "hi", "completion": "a<|im_end|>"}]
    whole = [{"messages": turns}]
    said = found(setup(rows), capsys)["end token"]
    assert said.startswith("train: in 1 row (line 2) answers end with '<|im_end|>' in their text")
    for more in ("", ", split_turns: true"):
        assert "1 row (line 1)" in found(setup(whole, more=more), capsys)["end token"]


CALLS = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ (tone or '') ~ '\n' ~ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name ~ c.function.arguments|tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' ~ (tone or '') ~ '\n' }}{% endif %}"
)


def test_what_a_template_never_reads_of_variables_and_calls_is_listed(
    setup: Callable[..., Path], capsys: Capture
) -> None:
    function = {"name": "f", "arguments": {"a": 1, "b": None, "c": {"d": None}}, "strict": True}
    call = {"id": "1", "type": "function", "function": function, "thought_signature": "x"}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
             {"role": "user", "content": "a"},
             {"role": "assistant", "content": "", "tool_calls": [call]}]  # fmt: skip
    row = {"messages": turns, "chat_template_kwargs": {"tone": "kind", "enable_thinking": False}}
    for more in ("", ", split_turns: true"):
        notes = found(setup([row, row], CALLS, more), capsys)
        assert "chat_template_kwargs.enable_thinking (2)" in notes["unread"]
        assert "messages[].tool_calls[].function.strict (2)" in notes["unread"]
        assert "messages[].tool_calls[].thought_signature (2)" in notes["unread"]
        assert "tone" not in notes["unread"] and ".id" not in notes["unread"]
        assert notes["nulls"].startswith("train: 4 null arguments of calls left out")
    whole = CALLS.replace("c.function.name ~ c.function.arguments|tojson", "c|tojson")
    unread = found(setup([row], whole), capsys)["unread"]
    assert "strict" not in unread and "thought_signature" not in unread


def test_a_row_hands_its_own_variables_to_the_template(
    setup: Callable[..., Path], capsys: Capture
) -> None:
    reads = QWEN.replace("m.role ~ '\n'", "m.role ~ (tone or '') ~ '\n'")
    rows = [
        {"prompt": f"{n}?", "completion": f"{n}", "chat_template_kwargs": {"tone": "kind"}}
        for n in range(2)
    ]
    assert main(["check", str(setup(rows, reads)), "--json"]) == 0
    preview = json.loads(capsys.readouterr().out)["preview"][0]["parts"]
    assert "userkind" in "".join(part["text"] for part in preview)
    rows[1]["chat_template_kwargs"] = {"messages": []}
    assert main(["check", str(setup(rows, reads))]) == 2
    assert "rows.jsonl:2: chat_template_kwargs.messages" in capsys.readouterr().err
