"""What is wrong with a row, and words for what was found in it."""

import json
from collections.abc import Mapping
from typing import Any


class RowError(ValueError):
    """A row that does not match its format; the caller adds file and line."""


def kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def names(fields: Mapping[Any, Any]) -> str:
    """The first few field names of an object, each of bounded length."""
    short = [name if len(name) <= 40 else f"{name[:37]}..." for name in map(str, fields)]
    return ", ".join(short[:8]) + (", ..." if len(short) > 8 else "") or "nothing"


def as_list(text: str) -> list[Any] | None:
    """The list that a JSON text encodes, or None: tables store lists this way."""
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else None
    except (RecursionError, ValueError):
        return None
    return value if isinstance(value, list) else None
