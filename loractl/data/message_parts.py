"""The parts of a conversation that a chat template may write or leave out, and the same
conversation with marks in their places."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from loractl.data.thoughts import FIELDS, Piece, pieces
from loractl.records import Message

FIRST_MARK, LAST_MARK = 0xE000, 0xF8FF  # Unicode's private use area


def free_marks(*texts: str) -> Iterator[str]:
    """Marks that stand in none of these texts."""
    known = set("").union(*texts)
    return (mark for mark in map(chr, range(FIRST_MARK, LAST_MARK)) if mark not in known)


class Part(NamedTuple):
    """One part of a message that says something."""

    number: int  # of the message
    kind: Literal["content", "thought", "name", "arguments", "field"]
    at: int = 0  # of the stretch of the content (see thoughts.pieces), or of the tool call
    field: str = ""  # that holds it, if it stands beside the content

    @property
    def is_of_call(self) -> bool:
        return self.kind in ("name", "arguments")


def parts_of(messages: Sequence[Message]) -> Iterator[Part]:
    """Every part that is not empty: reasoning, contents, calls, and other fields."""
    for number, message in enumerate(messages):
        for name, value in message.extra.items():
            is_thought = name in FIELDS and isinstance(value, str)
            if is_thought and value.strip():
                yield Part(number, "thought", field=name)
            elif not is_thought and value not in ("", [], {}):
                yield Part(number, "field", field=name)
        for index, piece in enumerate(_stretches(message)):
            if piece.text.strip() and piece.kind != "tag":
                yield Part(number, piece.kind, index)
        for index, call in enumerate(message.tool_calls):
            yield Part(number, "name", index)
            if function_of(call)["arguments"]:
                yield Part(number, "arguments", index)


def text_of(message: Message, part: Part) -> str:
    """The text of a part, for those that are texts of the row."""
    if part.field:
        value = message.extra[part.field]
        return value if isinstance(value, str) else ""
    return "" if part.is_of_call else list(_stretches(message))[part.at].text


def function_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function: Mapping[str, Any] = call.get("function", call)
    return function


def with_marks(messages: Sequence[Message], marks: Mapping[Part, str]) -> list[Message]:
    """The messages with marks in the places of some parts. A field that is no text stays."""
    marked = {part.number for part in marks}
    return [
        _marked(message, number, marks) if number in marked else message
        for number, message in enumerate(messages)
    ]


def _stretches(message: Message) -> Iterator[Piece]:
    for text in message.parts or (message.content,):
        yield from pieces(message, text)


def _marked(message: Message, number: int, marks: Mapping[Part, str]) -> Message:
    at, texts = 0, []
    for text in message.parts or (message.content,):
        written = ""
        for piece in pieces(message, text):
            part = Part(number, "thought" if piece.kind == "thought" else "content", at)
            written += _in_place_of(piece.text, marks[part]) if part in marks else piece.text
            at += 1
        texts.append(written)
    extra = {
        name: _field_marked(number, name, value, marks) for name, value in message.extra.items()
    }
    calls = tuple(
        _call_marked(call, number, index, marks) for index, call in enumerate(message.tool_calls)
    )
    return replace(
        message,
        content="".join(texts),
        parts=tuple(texts) if message.parts else (),
        tool_calls=calls,
        extra=extra,
    )


def _in_place_of(text: str, mark: str) -> str:
    """The mark with the white space around the text, which some templates look for."""
    body = text.strip()
    return text.replace(body, mark, 1)


def _field_marked(number: int, name: str, value: Any, marks: Mapping[Part, str]) -> Any:
    if not isinstance(value, str):
        return value
    kind: Literal["thought", "field"] = "thought" if name in FIELDS else "field"
    return marks.get(Part(number, kind, field=name), value)


def _call_marked(
    call: Mapping[str, Any], number: int, index: int, marks: Mapping[Part, str]
) -> Mapping[str, Any]:
    function, is_nested = dict(function_of(call)), "function" in call
    if name := marks.get(Part(number, "name", index)):
        if isinstance(call.get("id"), str):  # the only place where Kimi K2 writes the name
            ids = {"id": call["id"].replace(function["name"], name)}
            call, function = {**call, **ids}, {**function, **({} if is_nested else ids)}
        function["name"] = name
    if text := marks.get(Part(number, "arguments", index)):
        function["arguments"] = dict.fromkeys(function["arguments"], text)
    return {**call, "function": function} if is_nested else function
