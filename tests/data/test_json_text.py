"""JSON that stands in a row as text is trained as it is written, or refused by its field."""

import json
from pathlib import Path
from typing import Any

import pytest

from loractl.data import examples, json_text, rows
from loractl.data.reading import Reading
from loractl.data.row_errors import RowError
from loractl.errors import DataError
from tests.tiny import make_tokenizer, write_jsonl

HALF = "a \\u escape is half a character"
WRONG = [
    ('{"city": "Bern", "city": "Rome"}', "the key 'city' appears twice in one object"),
    ('{"a": {"b": 1, "b": 1}}', "the key 'b' appears twice"),
    ('{"a": NaN}', "the number NaN has no value in JSON"),
    ('{"a": [-Infinity]}', "the number -Infinity has no value in JSON"),
    ('{"a": 1e999}', "the number 1e999 has no value in JSON"),
    ('{"a": "\\ud83d"}', HALF),
]
ASK = {"role": "user", "content": "Hi"}


def calling(arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}]}


def refused(row: dict[str, Any], format: str = "messages") -> str:
    with pytest.raises(RowError) as raised:
        rows.read(row, format)
    return str(raised.value)


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_text_that_would_be_trained_otherwise_is_refused_with_its_field(
    text: str, words: str
) -> None:
    said = refused(calling(text))
    assert said.startswith(f"messages[1].tool_calls[0].function.arguments: {words}")
    answer = {"role": "assistant", "content": "Yes."}
    assert refused({"messages": [ASK, answer], "tools": f"[{text}]"}).startswith(f"tools: {words}")
    variables = {"messages": [ASK, answer], "chat_template_kwargs": text}
    assert refused(variables).startswith(f"chat_template_kwargs: {words}")
    called = {"from": "function_call", "value": f'{{"name": "f", "arguments": {text}}}'}
    turns = [{"from": "human", "value": "Hi"}, called]
    assert refused({"conversations": turns}, "sharegpt").startswith(
        f"conversations[1].value: {words}"
    )
    turns_as_text = f'[{{"from": "human", "value": "Hi", "note": {text}}}]'
    assert refused({"conversations": turns_as_text}, "sharegpt").startswith(
        f"conversations: {words}"
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused_in_parsed_arguments_too(number: float) -> None:
    said = refused(calling({"a": [{"b": number}]}))
    assert said.startswith("messages[1].tool_calls[0].function.arguments: the number")
    rows.read(calling({"a": [{"b": 1.5}]}), "messages")


def test_whole_pairs_of_escapes_and_long_numbers_are_read_as_they_are() -> None:
    text = '{"a": "\\ud83d\\ude00", "b": 123456789012345678901234567890, "c": -1e-400}'
    assert json_text.value_of(text, "x") == {"a": "😀", "b": int("1234567890" * 3), "c": 0.0}
    assert json_text.as_list("no list", "x") is json_text.as_list("[1", "x") is None
    with pytest.raises(json_text.NotJsonError):
        json_text.value_of("{'a': 1}", "x")


def test_half_a_character_in_arguments_is_said_with_file_and_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [calling("{}"), calling('{"a": "\\ud83d"}')])
    assert json.loads(path.read_text().splitlines()[1]), "the row itself is good JSON"
    with pytest.raises(DataError, match=r"rows.jsonl:2: messages\[1\].*half a character"):
        examples.load(str(path), make_tokenizer(), Reading("auto", 99, "assistant", "error"))
