"""Whether an answer is the expected one: one function per metric, each from 0 to 1."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from loractl.data.thoughts import after_thoughts


def exact_match(answer: str, expected: str) -> float:
    """Whether both texts are the same, ignoring surrounding whitespace."""
    return float(answer.strip() == expected.strip())


def contains(answer: str, expected: str) -> float:
    """Whether the expected text, without reasoning, occurs anywhere in the answer."""
    return float(after_thoughts(expected).strip() in answer)


def answer(answer: str, expected: str) -> float:
    """Whether both texts are the same after their reasoning, ignoring surrounding whitespace."""
    return exact_match(after_thoughts(answer), after_thoughts(expected))


def tool_call(answer: str, expected: str) -> float:
    """Whether both texts make the same calls in the same order: names and arguments equal as JSON.

    Where the calls of the expected text are written otherwise than as JSON objects with a name, the
    texts after the reasoning must be the same, but for the spelling of the JSON in them.
    """
    wanted, found = after_thoughts(expected), after_thoughts(answer)
    calls = list(_calls_in(wanted))
    if calls and not _names_outside(wanted):
        return float(list(_calls_in(found)) == calls and not _names_outside(found))
    return float(_respelled(found) == _respelled(wanted))


def _names_outside(text: str) -> bool:
    """Whether the markup around the JSON names something, so that what the JSON holds are values of
    arguments: <function=get>, functions.get:0<|tool_call_argument_begin|>, get[ARGS]."""
    words = " ".join(piece for piece in _pieces(text) if isinstance(piece, str)).split()
    return any(_NAMING.search(word) and _TAG.sub("", word) for word in words)


_TAG = re.compile(r"<[^<>=]*>|\[[A-Z_]+\]")
"""A tag that only frames: <tool_call>, <|python_tag|>, [TOOL_CALLS]."""

_NAMING = re.compile(r"""<[/|｜\w]|[\w"|｜]>|\[[A-Z_]+\]|^to=""")
"""A word with markup; not that of a comparison in prose, or of an arrow."""


_FRAME = {"name", "id", "type", "index", "arguments", "parameters"}
"""The fields of a call: an object with others, and without arguments, is no call."""


def _calls_in(text: str) -> Iterator[tuple[str, Any]]:
    for value in _json_in(text):
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict):
                continue
            one = one.get("function", one)
            if not isinstance(one, dict) or not isinstance(one.get("name"), str):
                continue
            arguments = one.get("arguments", one.get("parameters"))
            if arguments is None and one.keys() <= _FRAME:
                arguments = {}
            if isinstance(arguments, str):
                arguments = _parsed(arguments)
            if isinstance(arguments, dict):
                yield one["name"], arguments


def _respelled(text: str) -> list[Any]:
    """The text with each JSON object or list as its value, and without white space elsewhere."""
    return [piece if not isinstance(piece, str) else piece.split() for piece in _pieces(text)]


def _json_in(text: str) -> Iterator[Any]:
    return (piece for piece in _pieces(text) if not isinstance(piece, str))


def _pieces(text: str) -> Iterator[Any]:
    """Stretches of text, and the JSON objects and lists between them as values."""
    decoder, at, start = json.JSONDecoder(), 0, 0
    for opened in re.finditer(r"[{\[]", text):
        if opened.start() < at:
            continue  # inside a value
        try:
            value, end = decoder.raw_decode(text, opened.start())
            value = _told_apart(value)
        except (ValueError, RecursionError):
            continue
        yield text[start : opened.start()]
        yield value
        at = start = end
    yield text[start:]


def json_match(answer: str, expected: str) -> float:
    """The fraction of the fields of both JSON objects together that have the same value in both.

    An answer that is not a JSON object scores 0; extra fields lower the score.
    """
    wanted, found = (_parse_object(after_thoughts(text)) for text in (expected, answer))
    if wanted is None or found is None:
        return 0.0
    same = sum(key in found and found[key] == value for key, value in wanted.items())
    return float(same / max(1, len(wanted.keys() | found.keys())))


def _parse_object(text: str) -> dict[str, Any] | None:
    found = _parsed(text)
    return found if isinstance(found, dict) else None


def _parsed(text: str) -> Any:
    try:
        return _told_apart(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _told_apart(value: Any) -> Any:
    """The value with true and false as tuples: Python takes them for 1 and 0, JSON does not."""
    if isinstance(value, bool):
        return (value,)
    if isinstance(value, dict):
        return {key: _told_apart(one) for key, one in value.items()}
    return [_told_apart(one) for one in value] if isinstance(value, list) else value


def matching(pattern: str) -> Callable[[str, str], float]:
    """A metric: whether a regular expression matches anywhere in the answer. Raises re.error."""
    compiled = re.compile(pattern)
    return lambda answer, expected: float(compiled.search(answer) is not None)


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "contains": contains,
    "json_match": json_match,
    "answer": answer,
    "tool_call": tool_call,
}
