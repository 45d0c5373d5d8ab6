"""Whether the real texts of a conversation stand in what was rendered, in the order of its marks.

Marks (written.py) show that a template writes a part; a template that reads what is said in it, as
Qwen3's does for a `</think>`, may still lose the rest of that text. Both have to hold.
"""

import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from loractl.data.argument_values import texts_of
from loractl.data.message_parts import Part, function_of, text_of
from loractl.records import Message

_FORMS: tuple[Callable[[str], str], ...] = (
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text)[1:-1],
    lambda text: repr(text)[1:-1],
    lambda text: html.escape(text, quote=False),
    lambda text: html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
)
"""How templates escape a text."""

MOST_SHOWN = 60  # characters of a text that vanishes


class Vanished(NamedTuple):
    """A text of a part that is not in what was rendered, from its first lost word to its last."""

    part: Part
    text: str


def first_vanished(
    messages: Sequence[Message], parts: Sequence[Part], text: str, *, in_order: bool = True
) -> Vanished | None:
    """The first of these parts whose texts do not stand in the rendered text after those of the
    part before it; without `in_order`, anywhere in it."""
    at = 0
    for part in parts:
        ends = [at]
        for one in _texts_of(messages[part.number], part):
            end = _end_of(one, text, at)
            if end < 0:
                return Vanished(part, _lost_words(one, text, at))
            ends.append(end)
        at = max(ends) if in_order else 0
    return None


def _texts_of(message: Message, part: Part) -> Iterator[str]:
    """What a part says, without the white space around it, which templates trim."""
    if part.kind == "name":
        yield function_of(message.tool_calls[part.at])["name"].strip()
    elif part.kind == "arguments":
        for one in texts_of(function_of(message.tool_calls[part.at])["arguments"]):
            yield one.strip()
    elif part.kind != "field":
        yield text_of(message, part).strip()


def _end_of(wanted: str, text: str, at: int) -> int:
    """Where a text ends that stands in the other from `at` on, whatever its form; else -1."""
    found = text.find(wanted, at)
    if found >= 0:
        return found + len(wanted)
    for form in _FORMS:
        escaped = form(wanted)
        if escaped != wanted and (found := text.find(escaped, at)) >= 0:
            return found + len(escaped)
    words = r"\s+".join(map(re.escape, wanted.split()))
    spaced = re.compile(words, re.IGNORECASE).search(text, at)  # a template may write capitals
    return spaced.end() if spaced else -1


def _lost_words(wanted: str, text: str, at: int) -> str:
    """What is between the longest start and the longest end of a text that are written."""
    n_start = _longest(len(wanted), lambda n: text.find(wanted[:n], at) >= 0)
    n_end = _longest(len(wanted) - n_start, lambda n: text.find(wanted[len(wanted) - n :], at) >= 0)
    words = [
        word.span()
        for word in re.finditer(r"\S+", wanted)
        if word.end() > n_start and word.start() < len(wanted) - n_end
    ]
    lost = wanted[words[0][0] : words[-1][1]] if words else wanted
    return lost if len(lost) <= MOST_SHOWN else f"{lost[:MOST_SHOWN]}..."


def _longest(most: int, holds: Callable[[int], bool]) -> int:
    """The greatest n up to `most` for which it holds, as it does for all that are smaller."""
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if holds(middle) else (least, middle - 1)
    return least
