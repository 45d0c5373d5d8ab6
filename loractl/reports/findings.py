"""The findings of `check`, as lines and as plain data."""

import textwrap
from dataclasses import dataclass
from typing import Any

NARROW = " " * 6


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: `ok`, a `note` to be aware of, or a `fix` to make."""

    state: str
    what: str  # a word or two: the subject
    text: str  # one line: what was found and, unless ok, what to do


def findings_as_text(
    findings: list[Finding], *, colour: bool, width: int | None = None
) -> list[str]:
    """One line per finding, wrapped to `width`; those to act on come last, where they are seen."""
    order = {"ok": 0, "note": 1, "fix": 2}
    codes = {"ok": "32", "note": "33", "fix": "31"}
    words = max((len(one.what) for one in findings), default=0)
    left = 8 + words
    lines = []
    for one in sorted(findings, key=lambda one: order[one.state]):
        state = f"\x1b[{codes[one.state]}m{one.state:4}\x1b[0m" if colour else f"{one.state:4}"
        what = f"{one.what:{words}}  "
        if width is not None and width <= 2 * left:  # too narrow for a column of its own
            lines.append(f"{state}  {one.what}")
            lines += wrapped(one.text, width, first=NARROW, then=NARROW)
            continue
        text = wrapped(one.text, width, first=" " * left, then=" " * left)
        lines.append(f"{state}  {what}{text[0][left:]}")
        lines += text[1:]
    return lines


def wrapped(text: str, width: int | None, *, first: str = "", then: str = "") -> list[str]:
    """Lines of at most `width`, broken between words only: a path or setting stays whole."""
    if width is None:
        return [first + text]
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )


def findings_as_dicts(findings: list[Finding]) -> list[dict[str, Any]]:
    return [{"state": one.state, "what": one.what, "text": one.text} for one in findings]
