"""The findings of `check`, as lines and as plain data."""

import textwrap
from dataclasses import dataclass
from typing import Any


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
        text = [one.text]
        if width is not None and width > 2 * left:
            text = textwrap.wrap(one.text, width - left)
        lines.append(f"{state}  {one.what:{words}}  {text[0]}")
        lines += [" " * left + more for more in text[1:]]
    return lines


def findings_as_dicts(findings: list[Finding]) -> list[dict[str, Any]]:
    return [{"state": one.state, "what": one.what, "text": one.text} for one in findings]
