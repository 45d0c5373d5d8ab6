"""A raw row -> messages, a function a format. An error names the field and what it should be."""

from collections.abc import Callable, Mapping
from typing import Any

from loractl.records import Message

ROLES = ("system", "user", "assistant", "tool")
Rows = Callable[[Mapping[str, Any]], list[Message]]


class RowError(ValueError):
    """A row that does not have the form of its format; the caller adds file and line."""


def _text(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
        raise RowError(f"no field {name}, found {_names(fields)}")
    value = fields[name]
    if not isinstance(value, str):
        raise RowError(f"{name} is {_kind(value)}, expected text")
    return value


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in list(fields)[:8]) or "nothing"


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def messages(fields: Mapping[str, Any]) -> list[Message]:
    """{"messages": [{"role", "content"}, ...]}; "train": false on a message leaves it untrained."""
    if "messages" not in fields:
        raise RowError(f"no field messages, found {_names(fields)}")
    turns = fields["messages"]
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else _kind(turns)
        raise RowError(f"messages is {found}, expected a list of messages")
    return [_message(turn, f"messages[{number}]") for number, turn in enumerate(turns)]


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"{where} is {_kind(turn)}, expected an object with role and content")
    role = turn.get("role")
    if role not in ROLES:
        found = repr(role) if "role" in turn else "missing"
        raise RowError(f"{where}.role is {found}, expected one of {', '.join(ROLES)}")
    if not isinstance(turn.get("content"), str):
        found = _kind(turn["content"]) if "content" in turn else "missing"
        raise RowError(f"{where}.content is {found}, expected text")
    train = turn.get("train", True)
    if not isinstance(train, bool):
        raise RowError(f"{where}.train is {_kind(train)}, expected true or false")
    return Message(role, turn["content"], train)


def prompt_completion(fields: Mapping[str, Any]) -> list[Message]:
    """{"prompt": ..., "completion": ...}"""
    prompt, completion = _text(fields, "prompt"), _text(fields, "completion")
    return [Message("user", prompt), Message("assistant", completion)]


def alpaca(fields: Mapping[str, Any]) -> list[Message]:
    """{"instruction", "input", "output"}; input follows the instruction after a blank line."""
    instruction, output = _text(fields, "instruction"), _text(fields, "output")
    extra = _text(fields, "input") if "input" in fields else ""
    user = f"{instruction}\n\n{extra}" if extra else instruction
    return [Message("user", user), Message("assistant", output)]


def text(fields: Mapping[str, Any]) -> list[Message]:
    """{"text": ...}: plain text, trained whole; carried as one message without a role."""
    return [Message("", _text(fields, "text"))]


FORMATS: dict[str, Rows] = {
    "messages": messages,
    "prompt-completion": prompt_completion,
    "alpaca": alpaca,
    "text": text,
}

SIGNS = {
    "messages": {"messages"},
    "prompt-completion": {"prompt", "completion"},
    "alpaca": {"instruction", "output"},
    "text": {"text"},
}


def detect(fields: Mapping[str, Any]) -> str:
    """The format whose fields this row has; the first of `SIGNS` where several fit."""
    for name, needed in SIGNS.items():
        if needed <= fields.keys():
            return name
    known = "; ".join(f"{name}: {', '.join(sorted(needed))}" for name, needed in SIGNS.items())
    raise RowError(f"found the fields {_names(fields)}, expected those of a format ({known})")
