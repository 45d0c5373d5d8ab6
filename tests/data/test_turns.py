"""One message: every spelling that is read, and what is said of one that is wrong."""

import inspect
import json
import math
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from loractl.data import calls, turns
from loractl.data.rows import RowError
from loractl.records import Message

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, "é"]}}}


def message(turn: Any) -> Message:
    return turns.message(turn, "messages[1]")


def test_both_spellings_of_a_message_and_mixed_ones_are_read() -> None:
    for turn in (
        USER,
        {"from": "human", "value": "hi"},
        {"from": "user", "content": "hi"},
        {"role": "user", "value": "hi"},
    ):
        assert message(turn) == Message("user", "hi")
    both = message({**USER, "from": "web", "value": "other", "id": 3})
    assert (both.content, both.extra) == ("hi", {"value": "other", "id": 3})


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("system", "system"), ("human", "user"), ("user", "user"), ("gpt", "assistant"),
        ("assistant", "assistant"), ("chatgpt", "assistant"), ("bing", "assistant"),
        ("observation", "tool"), ("tool", "tool"),
        ("function_response", "tool"), ("developer", "system"),
    ],
)  # fmt: skip
def test_every_role_of_sharegpt_is_one_of_ours(name: str, role: str) -> None:
    assert message({"from": name, "value": "x"}) == Message(role, "x")


def test_a_developer_is_a_system() -> None:
    assert message({"role": "developer", "content": "x"}) == Message("system", "x")


@pytest.mark.parametrize(
    ("marks", "train"),
    [
        ({"train": False}, False), ({"train": True}, True), ({"train": None}, True),
        ({"weight": 0}, False), ({"weight": 1}, True), ({"weight": 0.0}, False),
        ({"weight": None, "train": False}, False), ({"train": False, "weight": 0}, False),
        ({"train": 0}, False), ({"train": 1}, True), ({"train": 0.0}, False),
    ],
)  # fmt: skip
def test_a_message_may_be_kept_out_of_training(marks: dict[str, Any], train: bool) -> None:
    for turn in ({"role": "assistant", "content": "x"}, {"from": "gpt", "value": "x"}):
        assert message({**turn, **marks}) == Message("assistant", "x", train)


@pytest.mark.parametrize(
    ("marks", "train"),
    [
        ({"loss": False}, False), ({"loss": True}, True), ({"training": False}, False),
        ({"trainable": False}, False), ({"mask": True}, False), ({"mask": False}, True),
        ({"mask": True, "train": False}, False), ({"loss": None, "mask": None}, True),
        ({"loss": 0}, False), ({"loss": 1}, True), ({"training": 0}, False),
        ({"trainable": 1}, True), ({"mask": 1}, False), ({"mask": 0}, True),
    ],
)  # fmt: skip
def test_the_marks_of_other_tools_mean_the_same(marks: dict[str, Any], train: bool) -> None:
    assert message({**USER, **marks}) == Message("user", "hi", train)
    if not any(value is not None for value in marks.values()):
        return
    with pytest.raises(RowError, match="expected only one"):
        message({**USER, **marks, "weight": int(not train)})


@pytest.mark.parametrize("weight", [0, 1, 0.5, 2, 3.25, 1e-30, 1e30])
def test_a_message_weighs_any_number_of_at_least_0(weight: float) -> None:
    found = message({**USER, "weight": weight})
    assert found.weight == weight and found.train == (weight > 0)
    assert isinstance(found.weight, float)
    agreeing = {"train": weight > 0, "loss": int(weight > 0), "mask": weight == 0}
    assert message({**USER, "weight": weight, **agreeing}) == found
    for mark, trains in turns.MARKS.items():
        contrary = (weight > 0) is not trains
        with pytest.raises(RowError, match=f"{mark} {contrary} and weight .*expected only one"):
            message({**USER, "weight": weight, mark: contrary})


def test_fields_that_templates_read_are_kept_and_null_ones_are_none() -> None:
    turn = {"role": "tool", "content": "12 C", "name": "get", "tool_call_id": "1", "loss": None}
    assert message(turn).extra == {"name": "get", "tool_call_id": "1"}
    padded = {**USER, "name": None, "tool_call_id": None, "tool_calls": None}
    assert message(padded) == Message("user", "hi")
    assert message({**USER, "when": {"day": 1, "hour": None}}).extra == {"when": {"day": 1}}


def test_a_call_in_sharegpt_is_a_real_call() -> None:
    value = '{"name": "f", "arguments": {"a": 1}}'
    expected = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    for text in (value, f"[{value}]"):
        found = message({"from": "function_call", "value": text})
        assert found == Message("assistant", "", True, (expected,))
    for wrong in ("f(1)", "[]", "5", None, '{"arguments": {}}'):
        with pytest.raises(RowError):
            message({"from": "function_call", "value": wrong})


def test_a_call_without_arguments_has_none_and_padding_with_nulls_is_dropped() -> None:
    for function in (
        {"name": "f"},
        {"name": "f", "arguments": None},
        {"name": "f", "arguments": ""},
    ):
        found = message(
            {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
        )
        assert found.tool_calls[0]["function"]["arguments"] == {}
    padded = {"name": "f", "arguments": {"city": "Bern", "n": None, "deep": {"x": None}}}
    found = message({"role": "assistant", "content": "", "tool_calls": [padded]})
    assert found.tool_calls[0]["arguments"] == {"city": "Bern", "deep": {}}
    written = {"name": "f", "arguments": '{"n": null}'}  # as somebody wrote it: a value
    found = message({"role": "assistant", "content": "", "tool_calls": [written]})
    assert found.tool_calls[0]["arguments"] == {"n": None}
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "n": None}}
    (tool,) = calls.tools([{"name": "a", "parameters": schema}])
    assert tool["parameters"]["properties"] == {"city": {"type": "string"}}


@pytest.mark.parametrize("name", ["arguments", "parameters", "input"])
def test_the_arguments_of_a_call_are_read_under_each_of_their_names(name: str) -> None:
    bare = {"name": "f", name: {"a": 1}}
    for function in (bare, {"name": "f", name: '{"a": 1}'}):
        for call in (function, {"function": function}):
            found = message({"role": "assistant", "content": "", "tool_calls": [call]})
            (read,) = found.tool_calls
            function_read = read.get("function", read)
            assert function_read["arguments"] == {"a": 1}
            assert {"parameters", "input"}.isdisjoint(function_read)
    found = message({"from": "function_call", "value": json.dumps(bare)})
    assert found.tool_calls[0]["function"]["arguments"] == {"a": 1}


def test_arguments_in_two_places_are_refused() -> None:
    both = {"name": "f", "arguments": {}, "parameters": {"a": 1}}
    with pytest.raises(RowError, match=r"\[0\] has arguments and parameters, expected only one"):
        message({"role": "assistant", "content": "", "tool_calls": [both]})
    beside = {"function": {"name": "f"}, "input": {"a": 1}}
    with pytest.raises(RowError, match=r"\[0\].input is beside function, expected inside it"):
        message({"role": "assistant", "content": "", "tool_calls": [beside]})


@pytest.mark.parametrize("name", ["audio", "video"])
def test_a_placeholder_of_sound_or_video_is_refused_and_a_tag_of_html_is_not(name: str) -> None:
    for text in (f"<{name}>What is it?", f"What is it? <{name}>\n"):
        with pytest.raises(RowError, match=f"<{name}> stands for a .*only text is trained"):
            message({"role": "user", "content": text})
    for text in (f"<{name}>x</{name}>", f"What does <{name}> mean?", f"<{name} src=a>"):
        assert message({"role": "user", "content": text}).content == text


def test_a_turn_of_sharegpt_with_two_texts_is_refused() -> None:
    with pytest.raises(RowError, match="has value and content, expected only one"):
        message({"from": "human", "value": "a", "content": "b"})
    for same in ({"value": "a", "content": "a"}, {"value": "a", "content": None},
                 {"value": None, "content": "a"}):  # fmt: skip
        assert message({"from": "human", **same}) == Message("user", "a")


def test_media_is_refused_in_words() -> None:
    for turn in (
        {**USER, "images": ["cat.png"]}, {"role": "user", "content": "<image>What is it?"},
        {**USER, "audio": "a.wav"},
    ):  # fmt: skip
        with pytest.raises(RowError, match="only text is trained"):
            message(turn)
    assert message({**USER, "images": [], "video": None}).content == "hi"


def test_parts_of_text_are_joined_and_kept_for_templates_that_read_lists() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    found = message({"role": "user", "content": parts})
    assert found == Message("user", "a b", parts=("a ", "b"))


def test_arguments_written_as_json_text_are_read_and_all_else_of_a_call_is_kept() -> None:
    for arguments in ('{"a": [1, "\\u00e9"]}', {"a": [1, "é"]}):
        call = {**CALL, "function": {"name": "f", "arguments": arguments}}
        for content in ({}, {"content": None}, {"content": ""}):
            found = message({"role": "assistant", "tool_calls": [call], **content})
            assert found == Message("assistant", "", True, (CALL,))
        bare = {"name": "f", "arguments": arguments}
        found = message({"role": "assistant", "content": "x", "tool_calls": [bare]})
        assert found.tool_calls == (CALL["function"],) and found.content == "x"
    for nothing in ("", " ", "{}", {}):
        empty = {"function": {"name": "f", "arguments": nothing}}
        found = message({"role": "assistant", "tool_calls": [empty]})
        assert found.tool_calls == ({"function": {"name": "f", "arguments": {}}},)


def test_calls_that_are_null_or_none_are_no_calls() -> None:
    for nothing in (None, []):
        assert message({**USER, "tool_calls": nothing}) == Message("user", "hi")


ROLES = "expected one of system, user, assistant, tool, developer"


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ("hi", "messages[1] is str, expected an object with role and content"),
        (None, "messages[1] is null, expected an object"),
        ({"speaker": "x", "text": "y"}, f"messages[1].role is missing, {ROLES}; the message has"
         " speaker, text"),
        ({"content": "x"}, f"messages[1].role is missing, {ROLES}; the message has content"),
        ({"role": "asistant", "content": "x"},
         f"messages[1].role is 'asistant', {ROLES}; did you mean assistant?"),
        ({"role": "User", "content": "x"}, "is 'User', " + ROLES + "; did you mean user?"),
        ({"role": "human", "content": "x"}, "is 'human', " + ROLES + "; did you mean user?"),
        ({"role": "ipython", "content": "x"}, "did you mean tool?"),
        ({"role": ["user"], "content": "x"}, "messages[1].role is list ['user'], expected one of"),
        ({"role": None, "content": "x"}, "messages[1].role is null"),
        ({"role": "zzz" * 99, "content": "x"}, "zzz, expected one of"),
        ({"from": "humann", "value": "x"}, "messages[1].from is 'humann', expected one of system,"
         " human, user, gpt"),
        ({"from": "GPT", "value": "x"}, "did you mean gpt?"),
        ({"role": "assistant"}, "messages[1].content is missing, expected text"),
        ({"from": "gpt"}, "messages[1].value is missing, expected text"),
        ({"role": "user", "content": 5}, "messages[1].content is int, expected text"),
        ({"role": "user", "content": None}, "messages[1].content is null, expected text"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "content is null"),
        ({"role": "user", "content": []}, "messages[1].content is an empty list"),
        ({"role": "user", "content": ["a"]}, "messages[1].content[0] is str, expected an object"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]},
         "messages[1].content[1].type is 'image_url', expected 'text'"),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text is missing"),
        ({**USER, "train": 2}, "messages[1].train is 2, expected true or false"),
        ({**USER, "loss": 0.5}, "messages[1].loss is 0.5, expected true or false"),
        ({**USER, "mask": "1"}, "messages[1].mask is str, expected true or false"),
        ({**USER, "weight": True}, "messages[1].weight is True, expected a number of at least 0"),
        ({**USER, "weight": "0"}, "messages[1].weight is '0', expected a number of at least 0"),
        ({**USER, "weight": [1]}, "messages[1].weight is [1], expected a number of at least 0"),
        ({**USER, "weight": -0.5}, "messages[1].weight is -0.5, expected a number of at least 0"),
        ({**USER, "weight": math.nan}, "messages[1].weight is nan, expected a number of at least"),
        ({**USER, "weight": math.inf}, "messages[1].weight is inf, expected a number of at least"),
        ({**USER, "weight": 1e31}, "weight is 1e+31, expected 0 or a number from 1e-30 to 1e+30"),
        ({**USER, "weight": 10**400}, "expected 0 or a number from 1e-30 to 1e+30"),
        ({**USER, "weight": 1e-31}, "weight is 1e-31, expected 0 or a number from 1e-30 to 1e+30"),
        ({**USER, "weight": 0.5, "loss": False}, "messages[1] has loss False and weight 0.5,"
         " expected only one"),
        ({**USER, "weight": 0, "train": True}, "expected only one"),
        ({**USER, "function_call": {"name": "f"}}, "function_call is in a user message"),
        ({"role": "assistant", "content": None, "function_call": {"arguments": "{}"}},
         "messages[1].function_call has no name"),
        ({"role": "assistant", "content": None, "function_call": CALL, "tool_calls": [CALL]},
         "messages[1] has function_call and tool_calls, expected only one"),
        ({"role": "tool", "content": {"a": 1}}, "content is dict, expected text; write it as JSON"),
        ({**USER, "tool_calls": [CALL]}, "messages[1].tool_calls is in a user message"),
    ],
)  # fmt: skip
def test_a_wrong_message_is_named_by_its_path(turn: Any, words: str) -> None:
    with pytest.raises(RowError) as caught:
        message(turn)
    assert words in str(caught.value) or (
        "zzz" in words and str(caught.value).startswith("messages[1].role is 'zzz")
    )
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ("f()", "tool_calls is str, expected a list of calls"),
        (["f"], "tool_calls[0] is str, expected an object"),
        ([CALL, {"id": 1}], "tool_calls[1] has no name"),
        ([{"function": {"arguments": {}}}], "tool_calls[0].function has no name"),
        ([{"function": "f"}], "tool_calls[0].function has no name"),
        ([{"function": {"name": "f", "arguments": "{"}}], "arguments is not valid JSON"),
        ([{"function": {"name": "f", "arguments": "[1]"}}], "function.arguments is list"),
        ([{"name": "f", "arguments": 3}], "tool_calls[0].arguments is int, expected an object"),
    ],
)
def test_a_wrong_call_is_named_by_its_path(calls: Any, words: str) -> None:
    with pytest.raises(RowError) as caught:
        message({"role": "assistant", "content": "x", "tool_calls": calls})
    assert str(caught.value).startswith("messages[1].tool_calls") and words in str(caught.value)


def test_tools_are_read_from_a_list_or_its_json_text() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}, {"name": "g"}]
    text = '[{"type": "function", "function": {"name": "f", "parameters": {}}}, {"name": "g"}]'
    assert calls.tools(tools) == calls.tools(text) == tuple(tools)
    assert [calls.tools(value) for value in (None, [], "", " ", "[]")] == [()] * 5


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ({}, "tools is dict, expected a list of tools"),
        ("{}", "tools is text but not a JSON list"),
        ("[", "tools is text but not a JSON list"),
        (["f"], r"tools\[0\] is str, expected an object"),
        ([{"name": "f"}, {"function": {}}], r"tools\[1\].function.name is missing"),
        ([{"description": "f"}], r"tools\[0\].name is missing"),
    ],
)
def test_wrong_tools_are_named(tools: Any, words: str) -> None:
    with pytest.raises(RowError, match=words):
        calls.tools(tools)


def test_options_of_what_renders_a_template_are_not_a_rows_to_set() -> None:
    options = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    for name in options - {"self", "documents", "kwargs"}:
        with pytest.raises(RowError, match=f"chat_template_kwargs.{name} is not a row's to set"):
            calls.variables({"tone": "kind", name: 1})
    assert calls.variables({"documents": [1]}) == {"documents": [1]}


def test_the_old_form_of_a_call_is_read_as_the_new_one() -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    new = {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{}"}}]}  # fmt: skip
    assert message(old) == message(new)
    assert message({"role": "function", "name": "f", "content": "1"}) == message(
        {"role": "tool", "name": "f", "content": "1"}
    )
