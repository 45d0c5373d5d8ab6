"""One row -> a conversation, for each format, and what is said of a row that has another form."""

import json
from typing import Any

import pytest

from loractl.data.rows import FIELDS, FORMATS, SIGNS, RowError, detect, guess_columns, rename
from loractl.records import Conversation, Message

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}
TOOL = {"type": "function", "function": {"name": "f"}}
GOOD: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, ANSWER]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    },
    "prompt-completion": {"prompt": "hi", "completion": "ho"},
    "alpaca": {"instruction": "hi", "input": "", "output": "ho"},
    "text": {"text": "hi ho"},
}
CHATS = [name for name in GOOD if name != "text"]
HI_HO = (Message("user", "hi"), Message("assistant", "ho"))


@pytest.mark.parametrize("name", CHATS)
def test_every_format_of_conversations_gives_the_same_messages(name: str) -> None:
    assert FORMATS[name](GOOD[name]) == Conversation(HI_HO)
    assert FORMATS[name]({**GOOD[name], "id": 3, "metadata": {"role": 5}}) == Conversation(HI_HO)


@pytest.mark.parametrize("name", CHATS)
def test_every_format_of_conversations_takes_a_system_and_tools(name: str) -> None:
    found = FORMATS[name]({**GOOD[name], "system": "Be short.", "tools": [TOOL]})
    assert found == Conversation((Message("system", "Be short."), *HI_HO), (TOOL,))
    for nothing in ("", " ", None):
        row = {**GOOD[name], "system": nothing, "tools": nothing}
        assert FORMATS[name](row) == Conversation(HI_HO)
    with pytest.raises(RowError, match="system is int, expected text"):
        FORMATS[name]({**GOOD[name], "system": 5})
    with pytest.raises(RowError, match="tools is int, expected a list"):
        FORMATS[name]({**GOOD[name], "tools": 5})


def test_a_system_beside_the_messages_and_among_them_must_be_the_same() -> None:
    row = {"messages": [{"role": "system", "content": "A"}, USER]}
    assert FORMATS["messages"]({**row, "system": "A"}) == FORMATS["messages"](row)
    with pytest.raises(RowError, match="system is both beside the messages and among them"):
        FORMATS["messages"]({**row, "system": "B"})


def test_a_list_of_messages_may_be_its_json_text_as_in_tables() -> None:
    text = '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]'
    assert FORMATS["messages"]({"messages": text}) == Conversation(HI_HO)


def test_plain_text_is_one_message_without_a_role() -> None:
    assert FORMATS["text"](GOOD["text"]) == Conversation((Message("", "hi ho"),))


def test_of_messages_as_prompt_and_completion_only_the_completion_is_trained() -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}
    row = {"prompt": [USER, ANSWER, USER], "completion": [call, ANSWER]}
    found = FORMATS["prompt-completion"](row).messages
    trained = [m.train for m in found if m.role == "assistant"]
    assert [m.content for m in found] == ["hi", "ho", "hi", "", "ho"]
    assert trained == [False, True, True]
    simple = {"prompt": [USER], "completion": [ANSWER]}
    assert FORMATS["prompt-completion"](simple) == Conversation(HI_HO)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": [USER], "completion": "ho"}, "completion is str, expected a list of messages"),
        ({"prompt": "hi", "completion": [ANSWER]}, "prompt is str, expected a list of messages"),
        ({"completion": [ANSWER]}, "prompt is missing, expected a list of messages"),
        ({"prompt": [], "completion": [ANSWER]}, "prompt is an empty list"),
        ({"prompt": [USER], "completion": [{}]}, r"completion\[0\].role is missing"),
    ],
)
def test_prompts_and_completions_of_two_kinds_are_refused(row: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words):
        FORMATS["prompt-completion"](row)


def test_the_input_of_alpaca_follows_its_instruction_after_a_blank_line() -> None:
    def asked(**row: Any) -> str:
        return FORMATS["alpaca"]({"output": "3", **row}).messages[0].content

    assert asked(instruction="Add.", input="1 2") == "Add.\n\n1 2"
    assert asked(instruction="", input="1 2") == "1 2"
    for nothing in ("", " \n", None):
        assert asked(instruction="Add.", input=nothing) == "Add."
    assert asked(instruction="Add.") == "Add."


def test_the_history_of_alpaca_goes_before_it() -> None:
    row = {**GOOD["alpaca"], "system": "S", "history": [["a", "b"], ["c", "d"]]}
    found = FORMATS["alpaca"](row)
    assert [m.content for m in found.messages] == ["S", "a", "b", "c", "d", "hi", "ho"]
    assert [m.role for m in found.messages[1:]] == ["user", "assistant"] * 3
    assert FORMATS["alpaca"]({**row, "history": '[["a", "b"], ["c", "d"]]'}) == found
    for nothing in ([], None, "", "[]"):
        assert FORMATS["alpaca"]({**GOOD["alpaca"], "history": nothing}) == Conversation(HI_HO)


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ("x", "history is str, expected a list of"),
        ({"a": 1}, "history is dict, expected"),
        (["ab"], r"history\[0\] is str, expected \[question, answer\]"),
        ([["a", "b"], ["a"]], r"history\[1\] is list, expected \[question, answer\]"),
        ([["a", None]], r"history\[0\] is list, expected \[question, answer\]"),
    ],
)
def test_a_wrong_history_is_named(history: Any, words: str) -> None:
    with pytest.raises(RowError, match=words):
        FORMATS["alpaca"]({**GOOD["alpaca"], "history": history})


@pytest.mark.parametrize("tag", ["<image>", "<audio>", "<video>"])
@pytest.mark.parametrize(
    ("name", "fields", "place"),
    [
        ("text", {"text": "{} a cat"}, "text"),
        ("prompt-completion", {"prompt": "{}hi", "completion": "ho"}, "prompt"),
        ("prompt-completion", {"prompt": "hi", "completion": "ho{}"}, "completion"),
        ("alpaca", {"instruction": "{}hi", "output": "ho"}, "instruction"),
        ("alpaca", {"instruction": "hi", "input": "{}", "output": "ho"}, "input"),
        ("alpaca", {"instruction": "hi", "output": "{}ho"}, "output"),
        ("alpaca", {**GOOD["alpaca"], "history": [["{}hi", "ho"]]}, r"history\[0\]"),
    ],
)
def test_placeholders_of_media_are_refused_in_every_format(
    name: str, fields: dict[str, Any], place: str, tag: str
) -> None:
    row = json.loads(json.dumps(fields).replace("{}", tag))
    with pytest.raises(RowError, match=f"^{place}: {tag} stands for a .*only text is trained"):
        FORMATS[name](row)


def test_a_text_that_comes_with_pictures_is_refused() -> None:
    with pytest.raises(RowError, match="^images is not empty"):
        FORMATS["text"]({"text": "a cat", "images": ["cat.png"]})
    page = "<list><image>cat.png</image></list>"
    assert FORMATS["text"]({"text": page, "images": []}).messages[0].content == page


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, " is null, expected a list of messages"),
        ("hi", " is str, expected a list of messages"),
        ("[1", " is str, expected a list of messages"),
        ("[]", " is str, expected a list of messages"),
        ([], " is an empty list, expected a list of messages"),
        ({}, " is dict, expected a list of messages"),
        (["hi"], r"\[0\] is str, expected an object"),
        ([USER, {"role": "asistant", "content": "x"}], r"\[1\].role is 'asistant'"),
    ],
)
def test_wrong_messages_are_named_by_their_path(name: str, value: Any, words: str) -> None:
    field = next(iter(SIGNS[name]))
    with pytest.raises(RowError, match=f"^{field}{words}"):
        FORMATS[name]({field: value})


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name, needed in SIGNS.items() for field in sorted(needed)],
)
def test_a_missing_field_is_named_with_those_found(name: str, field: str) -> None:
    row = {**GOOD[name], "other": 1}
    del row[field]
    with pytest.raises(RowError, match=f"^no field {field}, found .*other"):
        FORMATS[name](row)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("prompt-completion", "prompt"),
        ("alpaca", "instruction"),
        ("alpaca", "output"),
        ("text", "text"),
    ],
)
def test_a_field_that_is_no_text_is_named(name: str, field: str) -> None:
    for value, kind in ((None, "null"), (3, "int"), ({}, "dict")):
        with pytest.raises(RowError, match=f"{field} is {kind}, expected text"):
            FORMATS[name]({**GOOD[name], field: value})


# Which format


def test_every_format_has_its_signs_and_is_detected_by_them() -> None:
    assert FORMATS.keys() == SIGNS.keys() == GOOD.keys()
    assert [detect(row) for row in GOOD.values()] == list(GOOD)
    assert set().union(*GOOD.values()) <= FIELDS


def test_of_several_formats_that_fit_the_more_structured_is_taken() -> None:
    row: dict[str, Any] = {}
    for name in reversed(GOOD):
        row |= GOOD[name]
        assert detect(row) == name


def test_a_format_whose_fields_are_null_is_not_taken_while_another_fits() -> None:
    assert detect({"messages": None, "text": "x"}) == "text"
    assert detect({"prompt": None, "completion": "x"}) == "prompt-completion"


def test_a_format_that_columns_were_renamed_for_is_taken_before_all_others() -> None:
    row = {**GOOD["messages"], **GOOD["text"]}
    assert (detect(row), detect(row, {"text"}), detect(row, {"prompt"})) == (
        "messages",
        "text",
        "messages",
    )


CHAT = [USER, ANSWER]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "x", "answer": "y"}, "{prompt: question, completion: answer}"),
        ({"Question": "x", "Answer": "y", "id": 1}, "{prompt: Question, completion: Answer}"),
        ({"input": "x", "output": "y"}, "{prompt: input, completion: output}"),
        ({"user": "x", "assistant": "y"}, "{prompt: user, completion: assistant}"),
        ({"query": "x", "response": "y"}, "{prompt: query, completion: response}"),
        ({"prompt": "x", "response": "y"}, "{completion: response}"),
        ({"promt": "x", "completion": "y"}, "{prompt: promt}"),
        ({"instruction": "x", "response": "y"}, "{output: response}"),
        (
            {"instruction": "x", "context": "z", "response": "y"},
            "{output: response, input: context}",
        ),
        ({"conversation": CHAT}, "{messages: conversation}"),
        ({"id": 1, "dialog": CHAT}, "{messages: dialog}"),
        ({"conversation": "x", "content": "y"}, "{text: content}"),
    ],
)
def test_columns_that_look_like_a_format_are_answered_with_the_line_that_names_them(
    row: dict[str, Any], columns: str
) -> None:
    with pytest.raises(RowError) as caught:
        detect(row)
    mapping = dict(part.split(": ") for part in columns.strip("{}").split(", "))
    assert guess_columns(row) == mapping
    assert detect(rename(row, mapping)) in str(caught.value), "the advice works"


def test_unknown_fields_are_answered_with_those_of_every_format() -> None:
    with pytest.raises(RowError, match="found the fields speaker, x{37}...,") as caught:
        detect({"speaker": "x", "x" * 100: 1})
    assert all(f"{name}: " in str(caught.value) for name in FORMATS)
    assert "data.columns" not in str(caught.value)
    with pytest.raises(RowError, match="found the fields nothing"):
        detect({})


# Columns


def test_renamed_columns_lose_their_own_names_and_the_others_stay() -> None:
    row = {"q": "hi", "a": "ho", "id": 1}
    assert rename(row, {"prompt": "q", "completion": "a"}) == {**GOOD["prompt-completion"], "id": 1}
    assert rename(row, {}) == row
    swapped = {"prompt": "completion", "completion": "prompt"}
    assert rename({"prompt": 1, "completion": 2}, swapped) == {"prompt": 2, "completion": 1}
    assert detect(rename({"prompt": "x", "completion": "y"}, {"text": "prompt"})) == "text"


def test_inner_columns_are_reached_by_dots_and_a_name_with_dots_goes_first() -> None:
    row = {"a": {"b": {"c": 1}}, "x.y": 2, "x": {"y": 3}}
    assert rename(row, {"prompt": "a.b.c", "completion": "x.y"}) == {
        "prompt": 1,
        "completion": 2,
        "a": {"b": {"c": 1}},
        "x": {"y": 3},
    }


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("questions", "no column questions, found question, meta; did you mean question?"),
        ("zzz", "no column zzz, found question, meta"),
        ("meta.txt", "no column txt in meta, found text; did you mean meta.text?"),
        ("question.x", "no column x in question, found str"),
    ],
)
def test_a_renamed_column_that_is_missing_is_named_with_the_nearest(
    column: str, words: str
) -> None:
    with pytest.raises(RowError) as caught:
        rename({"question": "x", "meta": {"text": "y"}}, {"prompt": column})
    assert str(caught.value) == f"data.columns.prompt: {words}"
