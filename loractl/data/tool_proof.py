"""What a chat template leaves out of the tools that a row declares: a whole tool, or fields of its
schema. Found by rendering with marks for names, or without a field."""

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from loractl.data.message_parts import free_marks, function_of
from loractl.data.rendering import Renders, TemplateError

Path = tuple[str | int, ...]
MOST_PROVEN = 4096
MOST_TRIED = 400
"""Fields of the tools of one row that are tried, each with one rendering."""

_proven: dict[Hashable, Literal["all", "some", "none"]] = {}
"""How many of so many tools a template was found to write."""


@dataclass(frozen=True)
class Field:
    """A field of a tool's schema."""

    tool: int
    path: Path

    @property
    def name(self) -> str:
        return str(self.path[-1])


def missing_tool(renders: Renders) -> str | None:
    """The name of a tool that the template leaves out though it writes others; a template that
    writes none is another matter (`writes_tools`)."""
    names = [str(function_of(tool)["name"]) for tool in renders.tools]
    if len(names) < 2:
        return None
    form = (renders.template, str(renders.variables), len(names), _roles(renders))
    missing = [name for name in names if not _stands_in(name, renders.whole)]
    known = _proven.get(form, "some")
    if known == "some" or (missing and known == "all"):
        unwritten = _unwritten(renders, names)
        how: Literal["all", "some", "none"]
        how = "none" if len(unwritten) == len(names) else "some" if unwritten else "all"
        while len(_proven) >= MOST_PROVEN:
            del _proven[next(iter(_proven))]
        _proven[form] = how
        missing = unwritten or missing
        known = how
    return missing[0] if missing and known != "none" else None


def _unwritten(renders: Renders, names: Sequence[str]) -> list[str]:
    """The names in whose places no mark is written."""
    marks = list(islice(free_marks(renders.whole), len(names)))
    marked = [_with_name(tool, mark) for tool, mark in zip(renders.tools, marks, strict=False)]
    try:
        text = renders.with_tools(marked).of(renders.messages)
    except TemplateError:  # it has to read the names
        return [name for name in names if not _stands_in(name, renders.whole)]
    return [name for name, mark in zip(names, marks, strict=False) if mark not in text]


def left_out_fields(renders: Renders) -> Iterator[Field]:
    """The outermost fields of the tools without which the text is the same; at most MOST_TRIED
    are tried."""
    todo = islice(_fields_of(renders.tools), MOST_TRIED)
    left_out: set[Field] = set()
    for field in todo:
        if any(Field(field.tool, field.path[:n]) in left_out for n in range(1, len(field.path))):
            continue
        tools = list(renders.tools)
        tools[field.tool] = _without(tools[field.tool], field.path)
        try:
            same = renders.with_tools(tools).of(renders.messages) == renders.whole
        except TemplateError:  # it must be there, so it was read
            continue
        if same:
            left_out.add(field)
            yield field


def _fields_of(tools: Sequence[Mapping[str, Any]]) -> Iterator[Field]:
    """Every field of the functions but the frame of a schema, those that hold others first."""
    for number, tool in enumerate(tools):
        start: Path = ("function",) if "function" in tool else ()
        for path, value in _inside(function_of(tool), start):
            if path != ("type",) and (path[-1], value) != ("type", "object"):
                yield Field(number, path)


def _inside(value: Any, at: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield (*at, name), one
            yield from _inside(one, (*at, name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _inside(one, (*at, number))


def _without(value: Any, path: Path) -> Any:
    first, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        if not rest:
            return {name: one for name, one in value.items() if name != first}
        return {n: _without(one, rest) if n == first else one for n, one in value.items()}
    return [_without(one, rest) if n == first else one for n, one in enumerate(value)]


def _with_name(tool: Mapping[str, Any], name: str) -> dict[str, Any]:
    named = {**function_of(tool), "name": name}
    return {**tool, "function": named} if "function" in tool else named


def _roles(renders: Renders) -> tuple[str, ...]:
    return tuple(message.role for message in renders.messages)


def _stands_in(name: str, text: str) -> bool:
    return name in text or json.dumps(name)[1:-1] in text
