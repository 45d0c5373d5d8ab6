"""Words for the values that a setting accepts, derived from its type."""

import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from loractl.text import listed

Branch = tuple[Any, tuple[Any, ...]]
"""One alternative of a type, and the bounds that pydantic keeps with it."""

_SINGULAR = {str: "string", int: "an integer", float: "a number", types.NoneType: "null"}
_PLURAL = {str: "names", int: "integers", float: "numbers", Any: "values"}


def describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Describe what a setting accepts: 'an integer of at least 1', 'auto, true or false'."""
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
    """List the words that a setting accepts, alone or in a list; empty if it accepts none."""
    words: list[str] = []
    for kind, _ in branches(annotation):
        if origin(kind) is Literal:
            words += map(str, get_args(kind))
        elif kind is bool:
            words += ["true", "false"]
        elif origin(kind) is list:
            words += choices(get_args(kind)[0])
    return words


def origin(annotation: Any) -> Any:
    """`list` for `list[str]`, `Literal` for `Literal["a"]`, None for a type without brackets."""
    return get_origin(annotation)


def _is_choice(kind: Any) -> bool:
    return kind is bool or origin(kind) is Literal


def _describe_branch(kind: Any, bounds: Sequence[Any]) -> str:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a mapping"
    limits = _read_limits(bounds)
    article = "a non-empty" if limits.get("min_length") else "a"
    if origin(kind) is list:
        return f"{article} list of {_describe_plural(*get_args(kind))}"
    if origin(kind) is dict:
        names, values = get_args(kind)
        return f"a mapping of {_describe_plural(names)} to {_describe_plural(values)}"
    word = _SINGULAR[kind]
    return f"{article} {word}" if kind is str else word + _describe_interval(limits)


def _describe_plural(annotation: Any) -> str:
    if words := choices(annotation):
        return listed(words)
    kind, bounds = branches(annotation)[-1]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "mappings"
    return _PLURAL[kind] + _describe_interval(_read_limits(bounds))


def _read_limits(metadata: Iterable[Any]) -> dict[str, Any]:
    items = [item for entry in metadata for item in getattr(entry, "metadata", [entry])]
    names = ("ge", "gt", "le", "lt", "min_length")
    return {name: getattr(item, name) for item in items for name in names if hasattr(item, name)}


def _describe_interval(limits: dict[str, Any]) -> str:
    words = {"ge": "of at least", "gt": "greater than", "le": "at most", "lt": "less than"}
    parts = [f"{word} {limits[name]}" for name, word in words.items() if name in limits]
    return f" {' and '.join(parts)}" if parts else ""
