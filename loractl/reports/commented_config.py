"""Settings with a reason each -> a config file with a comment on every key."""

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from loractl.config.strict_yaml import dump, scalar

WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")

Commented = tuple[str, Any, str]
"""A dotted key, its value, and the comment on it."""


def commented(title: Sequence[str], settings: Sequence[Commented], end: Sequence[str] = ()) -> str:
    """The text of a config: comment lines, sections in the order of their first keys, and comment
    lines again."""
    lines = [f"# {line}".rstrip() for line in title]
    tree: dict[str, Any] = {}
    for key, value, why in settings:
        *above, name = key.split(".")
        section = tree
        for part in above:
            section = section.setdefault(part, {})
        section[name] = (value, why)
    for name, inner in tree.items():
        lines += ["", *_section_lines(name, inner, "")]
    if end:
        lines += ["", *(f"# {line}".rstrip() for line in end)]
    return "\n".join(lines) + "\n"


def _section_lines(name: str, inner: Any, indent: str) -> Iterator[str]:
    if isinstance(inner, tuple):
        value, why = inner
        yield from _setting_lines(name, value, why, indent)
        return
    yield f"{indent}{name}:"
    for key, within in inner.items():
        yield from _section_lines(key, within, f"{indent}  ")


def _setting_lines(name: str, value: Any, why: str, indent: str) -> Iterator[str]:
    """`key: value  # comment`, or the comment above it where that would be too long."""
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        yield from _comment_lines(why, indent)
        yield f"{indent}{name}:"
        yield from (f"{indent}  - {as_yaml(one)}" for one in value)
        return
    line = f"{indent}{name}: {as_yaml(value)}"
    if len(line) + len(why) + 4 <= WIDTH:
        yield f"{line}  # {why}" if why else line
        return
    yield from _comment_lines(why, indent)
    yield line


def _comment_lines(text: str, indent: str) -> Iterator[str]:
    yield from (f"{indent}# {line}" for line in textwrap.wrap(text, WIDTH - len(indent) - 2))


def as_yaml(value: Any) -> str:
    """A value on one line, read back unchanged."""
    match value:
        case str():
            return scalar(value)
        case float():
            return as_number(value)
        case list():
            return f"[{', '.join(_inside(one) for one in value)}]"
        case dict():
            pairs = (f"{_inside(key)}: {_inside(one)}" for key, one in value.items())
            return f"{{{', '.join(pairs)}}}"
    return dump({"k": value}).partition(": ")[2].strip()


def _inside(value: Any) -> str:
    """A value within brackets, where commas and braces have a meaning."""
    if isinstance(value, str) and not (_PLAIN.fullmatch(value) and scalar(value) == value):
        return json.dumps(value)
    return as_yaml(value)


def as_number(value: float) -> str:
    """A float as people write it: 0.13, 2e-4."""
    text = repr(value)
    if value and abs(value) < 0.01 and "e" not in text:
        digits, exponent = f"{value:.15e}".split("e")
        text = f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text.replace("e-0", "e-")
