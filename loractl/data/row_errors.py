"""What is wrong with a row, and words for what was found in it."""

from collections.abc import Mapping
from typing import Any

from loractl.errors import MOST_SHOWN, DataError


class RowError(ValueError):
    """A row that does not match its format; the caller adds file and line."""


class BadRows:
    """Keeps the first ten messages and counts the rest."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.count = 0

    def add(self, message: str) -> None:
        self.count += 1
        if len(self.messages) < MOST_SHOWN:
            self.messages.append(message)

    def extend(self, later: "BadRows") -> None:
        """Add those of the rows that follow."""
        self.count += later.count
        self.messages += later.messages[: MOST_SHOWN - len(self.messages)]

    def raise_if_any(self) -> None:
        """Raise DataError with the messages kept, the last of which says how many rows are bad."""
        if not self.count:
            return
        if more := self.count - len(self.messages):
            rows = "row" if more == 1 else "rows"
            self.messages[-1] += f"; and {more:,} more bad {rows} ({self.count:,} in all)"
        raise DataError(*self.messages)


def kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def names(fields: Mapping[Any, Any]) -> str:
    """The first few field names of an object, each of bounded length."""
    short = [name if len(name) <= 40 else f"{name[:37]}..." for name in map(str, fields)]
    return ", ".join(short[:8]) + (", ..." if len(short) > 8 else "") or "nothing"
