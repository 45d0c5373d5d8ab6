"""Text for the user: found values, tables, sizes and durations, without secrets."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST_VALUE = 60  # characters
LONGEST_MESSAGE = 1000

_SECRET = re.compile(r"(?<=://)[^/\s@]+(?=@)|\b(?:hf_|sk-)\w{12,}")
_SECRET_NAME = re.compile(r"(?i)token|secret|passw|credential|api_?key")


def found(value: Any) -> str:
    """Describe a value briefly, on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case "":
            return "an empty string"
        case str():
            return f"the string {shortened(repr(value))}"
        case list():
            return f"the list {shortened(repr(value))}"
        case dict():
            return "a mapping"
    return shortened(str(value))


def listed(words: Sequence[str]) -> str:
    """'a', 'a or b', 'a, b or c'; 'a, b or c, or null'."""
    if len(words) > 1 and words[-1] == "null":
        return f"{listed(words[:-1])}, or null"
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def closest(word: str, words: Iterable[str], cutoff: float = 0.65) -> str | None:
    """Find the word most similar to `word`, if any is close enough."""
    return next(iter(difflib.get_close_matches(word.lower(), list(words), 1, cutoff)), None)


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def without_middle(text: str, most: int) -> str:
    """A text, or of one that is longer than `most` characters its first and its last half of
    that."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... {len(text) - 2 * half:,} characters ... {text[-half:]}"


def is_secret(name: str) -> bool:
    """Whether the value of this key is likely a secret, which no message may show."""
    return _SECRET_NAME.search(name) is not None


def printable(message: str) -> str:
    """Mask secrets, escape characters unsafe for a terminal, and limit the length."""
    text = _SECRET.sub("***", message)
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 3] + "..."


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, has_numbers: bool = True) -> str:
    """Lay out text in columns as wide as their widest cell. Columns that begin with a number are
    right-aligned, unless `has_numbers` is false."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    first = rows[0] if rows and has_numbers else [""] * len(header)
    right = [cell.lstrip("-")[:1].isdigit() for cell in first]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [header, *rows]
    ]
    return "\n".join(lines)


def counted(n: int, what: str) -> str:
    """A number and its noun: 1 step, 2 steps."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format seconds as 42s, 3m07s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def size(n_bytes: float) -> str:
    """Format bytes in binary units, such as 512 B, 1.5 MiB or 2.25 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            digits = ".0f" if unit == "B" or n_bytes >= 100 else ".3g"
            return f"{n_bytes:{digits}} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} GiB"


def percent(share: float) -> str:
    """Format a share as 97.25%; only a share of 1 becomes 100%."""
    text = f"{share:.2%}"
    return "99.99%" if text == "100.00%" and share < 1 - 1e-9 else text
