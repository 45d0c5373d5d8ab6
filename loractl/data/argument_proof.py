"""Which names and values in the arguments of calls a chat template does not write, each proven by
a mark of its own, or, where a value has none (true, null), by a text that changes with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from loractl.data.argument_values import Value, changed, stand_in, values_of
from loractl.data.message_parts import Part, free_marks, function_of
from loractl.data.rendering import Renders, TemplateError
from loractl.records import Message

Change = Callable[[Part, Value, Any], Any]


class Lost(NamedTuple):
    """A name or a value that is not written."""

    part: Part
    value: Value


def first_lost(renders: Renders, parts: Sequence[Part]) -> Lost | None:
    """The first name or value of these arguments that the template does not write."""
    found = [
        (part, value, one)
        for part in parts
        if part.kind == "arguments"
        for value, one in values_of(_arguments_of(renders.messages, part))
    ]
    if not found:
        return None
    free = free_marks(renders.whole)
    marks = {
        (part, value): stand_in(one, number, mark)
        for number, ((part, value, one), mark) in enumerate(zip(found, free, strict=False))
    }
    text = _rendered(renders, lambda part, value, one: marks.get((part, value), one))
    seen: set[object] = set()
    for part, value, one in found:
        kind = (
            part,
            tuple("" if isinstance(step, int) else step for step in value.path),
            type(one),
        )
        if _is_marked(one) and _stands_in(marks.get((part, value)), text):
            continue
        if not _is_marked(one) and kind in seen:
            continue  # another item of the same list
        seen.add(kind)
        if not _is_read(renders, part, value, one):
            return Lost(part, value)
    return None


def _is_marked(one: Any) -> bool:
    return isinstance(one, str | int | float) and not isinstance(one, bool)


def _stands_in(mark: Any, text: str) -> bool:
    if mark is None:
        return False
    return str(mark) in text or (isinstance(mark, str) and f"\\u{ord(mark):04x}" in text)


def _is_read(renders: Renders, part: Part, value: Value, one: Any) -> bool:
    """Whether the text is another one where this name or value alone is another."""
    mark = next(free_marks(renders.whole))
    other = stand_in(one, 0, mark)
    try:
        as_is = renders.of(_with(renders.messages, lambda _part, _value, same: same))
        text = renders.of(
            _with(
                renders.messages,
                lambda of, at, same: other if (of, at) == (part, value) else same,
            )
        )
    except TemplateError:  # it must be what it is, so it was read
        return True
    return text != as_is


def _rendered(renders: Renders, change: Change) -> str:
    try:
        return renders.of(_with(renders.messages, change))
    except TemplateError:
        return ""


def _arguments_of(messages: Sequence[Message], part: Part) -> Mapping[str, Any]:
    found: Mapping[str, Any] = function_of(messages[part.number].tool_calls[part.at])["arguments"]
    return found


def _with(messages: Sequence[Message], change: Change) -> list[Message]:
    """The messages with other names and values in the arguments of their calls."""
    return [
        replace(message, tool_calls=tuple(_call_with(c, n, i, change) for i, c in calls))
        if (calls := list(enumerate(message.tool_calls)))
        else message
        for n, message in enumerate(messages)
    ]


def _call_with(
    call: Mapping[str, Any], number: int, index: int, change: Change
) -> Mapping[str, Any]:
    part = Part(number, "arguments", index)
    function = dict(function_of(call))
    function["arguments"] = changed(
        function["arguments"], lambda value, one: change(part, value, one)
    )
    return {**call, "function": function} if "function" in call else function
