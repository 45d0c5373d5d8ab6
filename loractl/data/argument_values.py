"""The arguments of a call, one by one: their names and values, nested ones too, and the same
arguments with marks in their places."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

FIRST_NUMBER = 910_000_001
"""Numbers from this on stand in the places of numbers."""


class Value(NamedTuple):
    """A name or a value within the arguments of a call."""

    path: tuple[str | int, ...]
    is_name: bool = False

    def __str__(self) -> str:
        steps = (f"[{one}]" if isinstance(one, int) else f".{one}" for one in self.path)
        return "".join(steps).removeprefix(".")


def values_of(arguments: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Value, Any]]:
    """Every name, with itself, and every value that holds no others."""
    if isinstance(arguments, Mapping):
        for name, one in arguments.items():
            yield Value((*path, name), is_name=True), name
            yield from values_of(one, (*path, name))
    elif isinstance(arguments, list):
        for number, one in enumerate(arguments):
            yield from values_of(one, (*path, number))
    else:
        yield Value(path), arguments


def texts_of(arguments: Any) -> Iterator[str]:
    """The names and the values that are texts."""
    for _, one in values_of(arguments):
        if isinstance(one, str):
            yield one


def form_of(arguments: Any) -> object:
    """What a template can tell apart without reading the values: types, and in lists those of the
    items, however many there are."""
    if isinstance(arguments, Mapping):
        return tuple(form_of(one) for one in arguments.values())
    if isinstance(arguments, list):
        items = dict.fromkeys(form_of(one) for one in arguments)
        return list, min(len(arguments), 2), tuple(items)
    return type(arguments)


def stand_in(value: Any, number: int, mark: str) -> Any:
    """Another value of the same type: the mark for a text, a number of its own for a number."""
    match value:
        case bool():
            return not value
        case int():
            return FIRST_NUMBER + number
        case float():
            return FIRST_NUMBER + number + 0.5
        case str():
            return mark
    return mark  # for null


def changed(arguments: Any, change: Callable[[Value, Any], Any]) -> Any:
    """The arguments with the result of `change` in the place of each name and value."""
    return _changed(arguments, change, ())


def _changed(arguments: Any, change: Callable[[Value, Any], Any], path: tuple[Any, ...]) -> Any:
    if isinstance(arguments, Mapping):
        return {
            change(Value((*path, name), is_name=True), name): _changed(one, change, (*path, name))
            for name, one in arguments.items()
        }
    if isinstance(arguments, Sequence) and not isinstance(arguments, str):
        return [_changed(one, change, (*path, n)) for n, one in enumerate(arguments)]
    return change(Value(path), arguments)
