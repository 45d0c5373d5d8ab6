"""No field of a row is lost unnoticed, however deep it stands."""

from typing import Any

from loractl.data import rows
from loractl.data.unread_fields import ALL


def unread(**fields: Any) -> tuple[str, ...]:
    return rows.read(fields, "messages").unread


def turns(**of_user: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "a", **of_user}, {"role": "assistant", "content": "b"}]


def test_functions_are_not_read_beside_tools() -> None:
    tools, functions = [{"name": "get"}], [{"name": "find"}]
    assert unread(messages=turns(), tools=tools, functions=functions) == ("functions",)
    assert unread(messages=turns(), functions=functions) == ()
    assert unread(messages=turns(), tools=[], functions=functions) == ()


def test_the_fields_of_parts_are_named() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "annotations": []}
    assert unread(messages=turns(content=[part])) == ("messages[].content[].cache_control",)


def test_a_question_that_is_marked_as_trained_is_named_with_the_setting_that_trains_it() -> None:
    assert unread(messages=turns(train=True, weight=3)) == (
        f"messages[].train of user messages, {ALL}",
        f"messages[].weight of user messages, {ALL}",
    )
    assert unread(messages=turns(train=False, weight=0, mask=True, loss=None)) == ()
    assert unread(messages=turns(mask=False)) == (f"messages[].mask of user messages, {ALL}",)
