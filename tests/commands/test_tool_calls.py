"""Rows with tools, from `init` to `generate`, for a model whose own template reads neither tools
nor calls; and the shapes that such rows have elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from loractl.config.loader import load
from tests.commands.conftest import Capture, Config, assert_refused
from tests.commands.test_check import check, finding
from tests.runs import train
from tests.tiny import make_tokenizer, save_tiny, write_jsonl

ASKED = {"role": "user", "content": "Do it."}
CURE = "set data.chat_template: chatml-tools"
SHORT = ("--set", "train.epochs=null", "--set", "train.steps=2")


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with positions for the tools, which take many of the tiny tokenizer's tokens."""
    made = tmp_path_factory.mktemp("roomy")
    save_tiny(made, make_tokenizer(), "llama", max_position_embeddings=1024)
    return made


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tool(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {**more, "type": "function", "function": {"name": name, "arguments": arguments}}


def says(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def row(name: str, arguments: Any) -> dict[str, Any]:
    """The same request in every row: only the tools say what to call."""
    return {"tools": [tool(name)], "messages": [ASKED, says(call(name, arguments))]}


def init(base: Path, rows: list[dict[str, object]], *templates: str, out: str = "own.yaml") -> str:
    write_jsonl(Path("rows.jsonl"), rows)
    asked = ["init", "--model", str(base), "--data", "rows.jsonl", "--out", out]
    assert main([*asked, *(word for name in templates for word in ("--template", name))]) == 0
    return Path(out).read_text("utf-8")


@pytest.mark.slow
def test_the_tools_of_a_prompt_decide_what_the_trained_model_calls(
    roomy: Path, folder: Path, capsys: Capture
) -> None:
    rows = [row("add", '{"x": 1}'), row("cut", {"x": 2})]
    text = init(roomy, rows * 15, "tool-calls")
    why = "# the model's own leaves out the tools or calls of these rows; or a Jinja file\n"
    assert f"  {why}  chat_template: chatml-tools\n" in text
    assert finding(check(Path("own.yaml"), capsys), "tools")["state"] == "ok"
    assert train(Path("own.yaml"), "--set", "train.learning_rate=2e-2") == 0
    capsys.readouterr()
    asked = [*rows, {"prompt": "Do it."}]  # what a row answers is not part of its prompt
    write_jsonl(Path("asked.jsonl"), asked)
    generate = ["generate", "runs/own", "--prompts", "asked.jsonl", "--max-new-tokens", "60"]
    assert main([*generate, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one, (name, x) in zip(found[:2], (("add", 1), ("cut", 2)), strict=True):
        expected = f'<tool_call>\n{{"name": "{name}", "arguments": {{"x": {x}}}}}\n</tool_call>'
        assert (one["text"], one["finish_reason"]) == (expected, "stop")
        assert one["prompt_tokens"] > found[2]["prompt_tokens"] + 100
    write_jsonl(Path("held.jsonl"), [*rows, row("cut", '{"x":   2}')])
    evaluate = ["eval", "runs/own", "--data", "held.jsonl", "--metrics", "tool_call"]
    assert main([*evaluate, "--max-new-tokens", "60", "--json"]) == 0
    untuned, tuned = json.loads(capsys.readouterr().out)
    assert (untuned["tool_call"]["value"], tuned["tool_call"]["value"]) == (0, 1)


def test_check_and_train_name_the_template_that_writes_what_the_models_own_leaves_out(
    roomy: Path, config_file: Config, capsys: Capture
) -> None:
    data = write_jsonl(Path("rows.jsonl"), [row("add", {"x": 1})] * 2)
    config = config_file(f"data: {{train: '{data}', max_length: 1024}}", model=roomy)
    for command in ("check", "train"):
        assert main([command, str(config)]) == 2
        assert_refused(capsys, "rows.jsonl:1: messages[1]: the chat template leaves out", CURE)
    assert check(config, capsys, "--set", "data.chat_template=chatml-tools")["ok"]


def spoken(name: str, *, tools: bool) -> dict[str, Any]:
    """A call as text, which every template writes."""
    said = {"role": "assistant", "content": f'{{"name": "{name}"}}'}
    return {**({"tools": [tool(name)]} if tools else {}), "messages": [ASKED, said]}


def test_tools_that_the_models_own_template_drops_are_written_where_most_rows_have_them(
    roomy: Path, capsys: Capture
) -> None:
    most = [spoken("add", tools=number % 3 > 0) for number in range(30)]
    init(roomy, most)
    assert load(Path("own.yaml")).config.data.chat_template == "chatml-tools"
    own = check(Path("own.yaml"), capsys, "--set", "data.chat_template=null")
    assert "leaves out" in (found := finding(own, "tools"))["text"] and CURE in found["text"]
    few = [spoken("add", tools=number % 3 == 0) for number in range(30)]
    assert "chat_template" not in init(roomy, few, out="few.yaml")


def test_a_call_of_a_tool_that_its_row_does_not_declare_is_noted(
    roomy: Path, capsys: Capture
) -> None:
    undeclared = {"messages": [ASKED, says(call("add", {}))]}
    other = {"tools": [tool("cut")], "messages": [ASKED, says(call("sew", {"x": 1}))]}
    init(roomy, [undeclared, row("add", {"x": 1}), other] * 5)
    found = finding(check(Path("own.yaml"), capsys), "undeclared")
    assert "10 of 15 rows call a tool that they do not declare, the first: add" in found["text"]


RESULT = {"role": "tool", "content": "ok"}
ODD: dict[str, list[dict[str, Any]]] = {
    "no arguments": [
        {"tools": [tool("f")], "messages": [ASKED, says({"function": {"name": "f"}})]},
        row("f", ""), row("f", {}), row("f", "{}"),
    ],
    "nested arguments": [
        row("f", {"x": {"y": [1, 2.5, {"z": True}]}}), row("f", '{"x": [[null]]}'),
    ],
    "unicode": [row("f", {"x": 'Grüße, 東京 🚆 "<b>"'}), row("f", json.dumps({"x": "Ü\n🚆"}))],
    "tools as JSON text": [{**row("f", {"x": 1}), "tools": json.dumps([tool("f")])}],
    "no tools": [{"messages": [ASKED, says(call("f", {"x": 1}))]}],
    "a result without id": [
        {"tools": [tool("f")], "messages": [ASKED, says(call("f", {}, id="a")), RESULT,
                                            {"role": "assistant", "content": "Done."}]},
    ],
    "three calls, one of which fails": [
        {"tools": [tool("f")], "messages": [
            ASKED, says(*(call("f", {"x": n}, id=str(n)) for n in range(3))),
            {**RESULT, "tool_call_id": "0"},
            {**RESULT, "tool_call_id": "1", "content": '{"error": "no 1"}'},
            {**RESULT, "tool_call_id": "2"}, {"role": "assistant", "content": "1 failed."}]},
    ],
    "no content": [{"tools": [tool("f")], "messages": [
        ASKED, {"role": "assistant", "tool_calls": [call("f", {"x": 1})]}]}],
    "text beside a call": [{"tools": [tool("f")], "messages": [
        ASKED, says(call("f", {"x": 1}), content="I will.")]}],
    "sharegpt": [{"tools": json.dumps([tool("f")]), "conversations": [
        {"from": "human", "value": "Do it."},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "ok"}, {"from": "gpt", "value": "Done."}]}],
    "OpenAI's old form": [{"functions": [tool("f")["function"]], "messages": [
        ASKED,
        {"role": "assistant", "content": None,
         "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "function", "name": "f", "content": "ok"},
        {"role": "assistant", "content": "Done."}]}],
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_rows_of_other_shapes_are_checked_and_trained_as_init_configures_them(
    name: str, roomy: Path, capsys: Capture
) -> None:
    init(roomy, ODD[name] * 3)
    report = check(Path("own.yaml"), capsys)
    assert report["ok"]
    text = "".join(part["text"] for part in report["preview"][0]["parts"])
    assert '<tool_call>\n{"name": "f", "arguments": {' in text
    if name != "no tools":
        assert f"<tools>\n{json.dumps(tool('f'))}\n</tools>" in text
    assert train(Path("own.yaml"), *SHORT) == 0
