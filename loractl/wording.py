"""Words for the user: what a setting expects (from its type), and what was found instead."""

import difflib
import re
import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

LONGEST_VALUE = 60  # characters
LONGEST_MESSAGE = 1000

Branch = tuple[Any, tuple[Any, ...]]
"""One alternative of a type, and the bounds that pydantic keeps beside it."""

_SINGULAR = {str: "text", int: "an integer", float: "a number", types.NoneType: "null"}
_PLURAL = {str: "names", int: "integers", float: "numbers"}
_SECRET = re.compile(r"(?<=://)[^/\s@]+(?=@)|\b(?:hf_|sk-)\w{12,}")
_SECRET_NAME = re.compile(r"(?i)token|secret|passw|credential|api_?key")


def describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Say what a setting takes: 'an integer of at least 1', 'auto, true or false'."""
    found = branches(annotation, metadata)
    if any(kind is float for kind, _ in found):
        found = [(kind, bounds) for kind, bounds in found if kind is not int]
    if len(found) == 1 and origin(found[0][0]) is Literal:
        words = choices(found[0][0])
        return f"one of {listed(words)}" if len(words) > 2 else listed(words)
    words = []
    for kind, bounds in found:
        words += choices(kind) if _is_choice(kind) else [_describe_branch(kind, bounds)]
    return listed(words)


def branches(annotation: Any, metadata: Sequence[Any] = ()) -> list[Branch]:
    """List the alternatives of a type, each with its bounds; null comes last."""
    if origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return branches(inner, (*metadata, *more))
    if origin(annotation) not in (Union, types.UnionType):
        return [(annotation, tuple(metadata))]
    found = [branch for inner in get_args(annotation) for branch in branches(inner, metadata)]
    return sorted(found, key=lambda branch: branch[0] is types.NoneType)


def choices(annotation: Any) -> list[str]:
    """List the words that a setting takes, alone or in a list; empty if it takes anything else."""
    words: list[str] = []
    for kind, _ in branches(annotation):
        if origin(kind) is Literal:
            words += map(str, get_args(kind))
        elif kind is bool:
            words += ["true", "false"]
        elif origin(kind) is list:
            words += choices(get_args(kind)[0])
    return words


def found(value: Any) -> str:
    """Say what a value is, short and on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case "":
            return "an empty text"
        case str():
            return f"the text {shortened(repr(value))}"
        case list():
            return f"the list {shortened(repr(value))}"
        case dict():
            return "a mapping"
    return shortened(str(value))


def origin(annotation: Any) -> Any:
    """`list` for `list[str]`, `Literal` for `Literal["a"]`, None for what has no brackets."""
    return get_origin(annotation)


def listed(words: Sequence[str]) -> str:
    """'a', 'a or b', 'a, b or c'; 'a, b or c, or null'."""
    if len(words) > 1 and words[-1] == "null":
        return f"{listed(words[:-1])}, or null"
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def closest(word: str, words: Iterable[str], cutoff: float = 0.65) -> str | None:
    """Find the word that is most like another one, if any is."""
    return next(iter(difflib.get_close_matches(word.lower(), list(words), 1, cutoff)), None)


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def is_secret(name: str) -> bool:
    """Whether the value of this key is likely a password, which no message may show."""
    return _SECRET_NAME.search(name) is not None


def printable(message: str) -> str:
    """Mask passwords and tokens, escape what would disturb a terminal, and bound the length."""
    text = _SECRET.sub("***", message)
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 3] + "..."


def _is_choice(kind: Any) -> bool:
    return kind is bool or origin(kind) is Literal


def _describe_branch(kind: Any, bounds: Sequence[Any]) -> str:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a mapping"
    limits = _limits(bounds)
    article = "a non-empty" if limits.get("min_length") else "a"
    if origin(kind) is list:
        return f"{article} list of {_plural(*get_args(kind))}"
    if origin(kind) is dict:
        names, values = get_args(kind)
        return f"a mapping of {_plural(names)} to {_plural(values)}"
    word = _SINGULAR[kind]
    return f"{article} {word}" if kind is str else word + _interval(limits)


def _plural(annotation: Any) -> str:
    if words := choices(annotation):
        return listed(words)
    kind, bounds = branches(annotation)[-1]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "mappings"
    return _PLURAL[kind] + _interval(_limits(bounds))


def _limits(metadata: Iterable[Any]) -> dict[str, Any]:
    items = [item for entry in metadata for item in getattr(entry, "metadata", [entry])]
    names = ("ge", "gt", "le", "lt", "min_length")
    return {name: getattr(item, name) for item in items for name in names if hasattr(item, name)}


def _interval(limits: dict[str, Any]) -> str:
    words = {"ge": "of at least", "gt": "greater than", "le": "at most", "lt": "less than"}
    parts = [f"{word} {limits[name]}" for name, word in words.items() if name in limits]
    return f" {' and '.join(parts)}" if parts else ""
