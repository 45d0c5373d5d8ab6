"""JSON that stands in a row as text (arguments of calls, tools, whole conversations) -> values.

Python's json takes the last of two equal keys, reads NaN, and makes Infinity of 1e999: what it
gives back is then another text than the row's, so such text is refused.
"""

import json
import math
import re
from typing import Any

from loractl.data.row_errors import RowError

HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that may be half a character."""


class RepeatedError(ValueError):
    """An object with a duplicate key: there is no telling which of the two is meant."""


class NotJsonError(ValueError):
    """A text that is no JSON at all."""


def strict_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the decoder. Raises RepeatedError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedError(f"the key {key!r} appears twice in one object; remove one")
            seen.add(key)
    return found


def half_character(value: Any) -> str | None:
    """What is wrong with a value that holds a lone surrogate, which no tokenizer accepts."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "a \\u escape is half a character (a lone surrogate); remove it"
    return None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RowError(_say_number(text))
    return value


def _refuse_constant(name: str) -> None:
    raise RowError(_say_number(name))


def _say_number(found: str) -> str:
    return f"the number {found[:40]} has no value in JSON; write a finite number, or text"


_STRICT = json.JSONDecoder(
    object_pairs_hook=strict_object, parse_float=_finite, parse_constant=_refuse_constant
)


def value_of(text: str, where: str) -> Any:
    """The value of a JSON text, which stands in the field `where` of a row.

    Raises NotJsonError; RowError for JSON that would not be trained as it is written.
    """
    try:
        value = _STRICT.decode(text.strip())
    except (RepeatedError, RowError) as error:
        raise RowError(f"{where}: {error}") from None
    except (RecursionError, ValueError) as error:
        raise NotJsonError(str(error)) from None
    if HALF.search(text) and (wrong := half_character(value)):
        raise RowError(f"{where}: {wrong}")
    return value


def as_list(text: str, where: str) -> list[Any] | None:
    """The list that a JSON text encodes, or None: tables store lists this way.

    Raises RowError as `value_of` does.
    """
    try:
        value = value_of(text, where) if text.lstrip().startswith("[") else None
    except NotJsonError:
        return None
    return value if isinstance(value, list) else None


def refuse_non_finite(value: Any, where: str) -> None:
    """Raise RowError for a number that JSON cannot write, in a value that came parsed."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, float) and not math.isfinite(one):
            raise RowError(f"{where}: {_say_number(str(one))}")
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else []
