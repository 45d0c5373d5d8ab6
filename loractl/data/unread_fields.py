"""Which fields of a row nothing reads: of the row itself, of the parts of a content, and marks of
training on messages that are not answers."""

from collections.abc import Iterator, Mapping
from typing import Any

from loractl.data.turns import MARKS

Fields = Mapping[str, Any]

ALL = "which only data.train_on: all reads"
"""What is said of a mark that says that a message is trained which is no answer."""

_LISTS = ("messages", "conversations", "prompt", "completion")
_OF_PART = {"type", "text"}


def unread_fields(fields: Fields, known: frozenset[str]) -> tuple[str, ...]:
    """The names of the fields that hold something and are not read; `known` are those of the row
    that its format reads."""
    found = [str(n) for n, value in fields.items() if n not in known and _holds(value)]
    if _holds(fields.get("tools")) and _holds(fields.get("functions")):
        found.append("functions")  # the older word for the same
    for name in sorted(known.intersection(_LISTS)):
        turns = fields.get(name)
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, Mapping):
                found += _of_message(name, turn)
    return tuple(dict.fromkeys(found))


def without_marks(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `unread_fields` that data.train_on: all does not read either."""
    return tuple(name for name in names if not name.endswith(ALL))


def _holds(value: Any) -> bool:
    return value is not None and value != "" and value != []


def _of_message(name: str, turn: Fields) -> Iterator[str]:
    content = turn.get("content")
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping):
            for field, value in part.items():
                if field not in _OF_PART and _holds(value):
                    yield f"{name}[].content[].{field}"
    role = turn.get("role", turn.get("from"))
    if role in ("user", "human", "system"):
        for field in _trains(turn):
            yield f"{name}[].{field} of {role} messages, {ALL}"


def _trains(turn: Fields) -> Iterator[str]:
    """The fields that say that a message is trained."""
    for field, value in MARKS.items():
        if turn.get(field) is not None and bool(turn[field]) is value:
            yield field
    if turn.get("weight"):
        yield "weight"
