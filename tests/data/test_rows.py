"""One row -> messages, for each format, and what is said of a row that has another form."""

from typing import Any

import pytest

from loractl.data.rows import FORMATS, SIGNS, RowError, detect
from loractl.records import Message

USER = {"role": "user", "content": "hi"}
GOOD: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, {"role": "assistant", "content": "ho"}]},
    "prompt-completion": {"prompt": "hi", "completion": "ho"},
    "alpaca": {"instruction": "hi", "input": "", "output": "ho"},
    "text": {"text": "hi ho"},
}


@pytest.mark.parametrize("name", ["messages", "prompt-completion", "alpaca"])
def test_every_format_of_conversations_gives_the_same_messages(name: str) -> None:
    assert FORMATS[name](GOOD[name]) == [Message("user", "hi"), Message("assistant", "ho")]


def test_plain_text_is_one_message_without_a_role() -> None:
    assert FORMATS["text"](GOOD["text"]) == [Message("", "hi ho")]


def test_the_input_of_alpaca_follows_its_instruction_after_a_blank_line() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert FORMATS["alpaca"](row)[0] == Message("user", "Add.\n\n1 2")
    assert FORMATS["alpaca"]({"instruction": "Add.", "output": "3"})[0] == Message("user", "Add.")


def test_a_message_may_be_kept_out_of_training_and_further_fields_are_ignored() -> None:
    turns = [USER, {"role": "assistant", "content": "ho", "train": False, "name": "x"}]
    assert FORMATS["messages"]({"messages": turns, "id": 3})[1] == Message("assistant", "ho", False)


def test_every_format_has_its_signs_and_is_detected_by_them() -> None:
    assert FORMATS.keys() == SIGNS.keys() == GOOD.keys()
    assert [detect(row) for row in GOOD.values()] == list(GOOD)
    assert detect({"text": "x", "prompt": "x", "completion": "y"}) == "prompt-completion"


def test_unknown_fields_are_answered_with_those_of_every_format() -> None:
    with pytest.raises(RowError, match="found the fields question, answer") as caught:
        detect({"question": "x", "answer": "y"})
    assert all(name in str(caught.value) for name in FORMATS)
    with pytest.raises(RowError, match="found the fields nothing"):
        detect({})


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "messages is null"),
        ("hi", "messages is str, expected a list"),
        ([], "messages is an empty list"),
        ({}, "messages is dict"),
        (["hi"], r"messages\[0\] is str, expected an object"),
        ([USER, {"content": "x"}], r"messages\[1\].role is missing, expected one of system, user"),
        ([USER, {"role": "asistant", "content": "x"}], r"messages\[1\].role is 'asistant'"),
        ([USER, {"role": ["user"], "content": "x"}], r"messages\[1\].role is \['user'\]"),
        ([USER, {"role": "assistant"}], r"messages\[1\].content is missing, expected text"),
        ([USER, {"role": "assistant", "content": 5}], r"messages\[1\].content is int"),
        ([USER, {"role": "assistant", "content": None}], r"messages\[1\].content is null"),
        ([USER, {"role": "assistant", "content": "x", "train": 1}], r"messages\[1\].train is int"),
    ],
)
def test_a_wrong_message_is_named_by_its_path(messages: Any, words: str) -> None:
    with pytest.raises(RowError, match=words):
        FORMATS["messages"]({"messages": messages})


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("prompt-completion", "prompt"),
        ("prompt-completion", "completion"),
        ("alpaca", "instruction"),
        ("alpaca", "output"),
        ("text", "text"),
        ("messages", "messages"),
    ],
)
def test_a_missing_field_is_named_with_those_found(name: str, field: str) -> None:
    row = {**GOOD[name], "other": 1}
    del row[field]
    with pytest.raises(RowError, match=f"no field {field}, found .*other"):
        FORMATS[name](row)


@pytest.mark.parametrize(
    ("name", "field"),
    [("prompt-completion", "prompt"), ("alpaca", "input"), ("alpaca", "output"), ("text", "text")],
)
def test_a_field_that_is_no_text_is_named(name: str, field: str) -> None:
    for value, kind in ((None, "null"), (3, "int"), (["x"], "list")):
        with pytest.raises(RowError, match=f"{field} is {kind}, expected text"):
            FORMATS[name]({**GOOD[name], field: value})
