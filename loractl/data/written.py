"""What a chat template writes of a conversation: contents, reasoning, each call's name and
arguments, other fields. Proven by marks in the place of each part, since its text may also stand
elsewhere: in an answer that repeats a tool's result, or in what the template itself says. What a
template loses because of what is said, `verbatim` finds in the real texts.
"""

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from loractl.config.jinja_text import words_of
from loractl.data import argument_proof, thoughts
from loractl.data.argument_values import form_of
from loractl.data.left_out import say_argument_lost, say_lost, say_vanished
from loractl.data.message_parts import Part, free_marks, function_of, parts_of, text_of
from loractl.data.rendering import Renders, TemplateError
from loractl.data.verbatim import Vanished, first_vanished

MOST_PROVEN = 4096

_proven: dict[Hashable, "Written"] = {}
"""Forms of conversations whose texts were proven; the oldest make room."""


@dataclass(frozen=True)
class Written:
    """What a template leaves out of a conversation without being asked to."""

    thoughts: tuple[Part, ...] = ()  # reasoning
    never: tuple[Part, ...] = ()  # of it, what is not written in a last answer either
    unread: tuple[str, ...] = ()  # fields of messages
    order: tuple[Part, ...] = ()  # the others, as they follow each other in the text; if known


def forget_() -> None:
    """Forget the forms proven so far."""
    _proven.clear()


def what_is_written(renders: Renders) -> Written:
    """What the template leaves out of the conversation: reasoning, and fields that it never reads.

    Conversations of the same form are rendered alike, so a form is proven once; a row whose texts
    do not follow each other in what was rendered is proven by itself. Raises TemplateError if
    anything else is left out, even a few words of a content.
    """
    parts = list(parts_of(renders.messages))
    form = (renders.template, bool(renders.tools), str(renders.variables), _form_of(renders, parts))
    if (known := _proven.get(form)) and not _vanished(renders, parts, known, is_own=False):
        return _without_repeated(renders, parts, known)
    found = _proof_of(renders, parts)
    if vanished := _vanished(renders, parts, found, is_own=True):
        raise say_vanished(renders, vanished)
    while len(_proven) >= MOST_PROVEN:
        del _proven[next(iter(_proven))]
    _proven[form] = found
    return _without_repeated(renders, parts, found)


def _proof_of(renders: Renders, parts: Sequence[Part]) -> Written:
    """What is written of these parts by their marks. Raises TemplateError."""
    places = _places_of(renders, parts, _free_marks(renders, len(parts)))
    lost = [part for part in parts if part not in places]
    for part in lost:
        if part.kind not in ("thought", "field"):
            raise say_lost(renders, part)
    if one := argument_proof.first_lost(renders, parts):
        raise say_argument_lost(renders, one)
    lost_thoughts = tuple(part for part in lost if part.kind == "thought")
    is_known = all(places.values())
    return Written(
        thoughts=lost_thoughts,
        never=tuple(part for part in lost_thoughts if not _is_written_last(renders, part)),
        unread=tuple(dict.fromkeys(part.field for part in lost if part.kind == "field")),
        order=tuple(sorted(places, key=lambda part: places[part])) if is_known else (),
    )


def _vanished(
    renders: Renders, parts: Sequence[Part], written: Written, *, is_own: bool
) -> Vanished | None:
    """The part whose real texts are not all in what was rendered. Where the order is not known,
    that of the row has to do, or for a row with a proof of its own none."""
    rest = written.order or [part for part in parts if part not in written.thoughts]
    in_order = bool(written.order) or not is_own
    return first_vanished(renders.messages, rest, renders.whole, in_order=in_order)


def _without_repeated(renders: Renders, parts: Sequence[Part], written: Written) -> Written:
    """Reasoning that the answer has under another name too, where it is written, is not lost."""
    if not written.thoughts:
        return written
    said = {
        (part.number, text_of(renders.messages[part.number], part).strip())
        for part in parts
        if part.kind == "thought" and part not in written.thoughts
    }
    left = tuple(
        part
        for part in written.thoughts
        if (part.number, text_of(renders.messages[part.number], part).strip()) not in said
    )
    return replace(written, thoughts=left, never=tuple(p for p in written.never if p in left))


def lost_thoughts(renders: Renders, written: Written, trained: Sequence[int]) -> int:
    """How many answers lose reasoning to the template, which drops that of earlier turns by design.

    Raises TemplateError if a trained answer loses it that is the last, or whose reasoning the
    template would not write if it were.
    """
    lost = {part.number for part in written.thoughts}
    last = max((n for n, m in enumerate(renders.messages) if m.role == "assistant"), default=-1)
    for part in reversed(written.thoughts):
        if part.number in trained and (part.number == last or part in written.never):
            raise _say_thought_lost(renders, part)
    return len(lost)


def _is_written_last(renders: Renders, part: Part) -> bool:
    """Whether the template writes this part of an answer where the answer is the last message."""
    until = renders.like(renders.messages[: part.number + 1])
    try:
        return _stands_in(renders.mark, until.with_parts_marked({part: renders.mark}))
    except TemplateError:
        return False


def _form_of(renders: Renders, parts: Sequence[Part]) -> Hashable:
    """What a template can tell apart without reading what is said."""
    calls = (
        tuple(form_of(function_of(call)["arguments"]) for call in message.tool_calls)
        for message in renders.messages
    )
    return tuple(message.role for message in renders.messages), tuple(parts), tuple(calls)


def _free_marks(renders: Renders, count: int) -> list[str]:
    """Characters that do not occur in the conversation; fewer than asked for in a very long one."""
    contents = (message.content for message in renders.messages)
    return list(islice(free_marks(renders.whole, *contents), count))


def _places_of(renders: Renders, parts: Sequence[Part], marks: Sequence[str]) -> dict[Part, int]:
    """The parts that the template writes, with the places of their marks in the text, from 1 on.

    All are marked at once; where a mark is missing then, because the template reads what is said,
    each part is marked alone, and its place is 0.
    """
    found: dict[Part, int] = {}
    for start in range(0, len(parts), max(1, len(marks))):
        group = dict(zip(parts[start : start + len(marks)], marks, strict=False))
        try:
            text = renders.with_parts_marked(group)
        except TemplateError:
            text = ""
        for part, mark in group.items():
            if place := _place_in(mark, text):
                found[part] = place if len(parts) <= len(marks) else 0
            elif _is_written_alone(renders, part, mark):
                found[part] = 0
    return found


def _is_written_alone(renders: Renders, part: Part, mark: str) -> bool:
    if part.kind == "field":
        return _is_read(renders, part)
    try:
        return _stands_in(mark, renders.with_parts_marked({part: mark}))
    except TemplateError:  # it must be what it is, so it was read
        return True


def _is_read(renders: Renders, part: Part) -> bool:
    """Whether the text is another one without a field."""
    messages = list(renders.messages)
    message = messages[part.number]
    extra = {name: value for name, value in message.extra.items() if name != part.field}
    messages[part.number] = replace(message, extra=extra)
    try:
        return renders.of(messages) != renders.whole
    except TemplateError:
        return True


def _stands_in(mark: str, text: str) -> bool:
    return _place_in(mark, text) > 0


def _place_in(mark: str, text: str) -> int:
    """The place after which a mark, or its escape in JSON, begins in a text; 0 if it does not."""
    return text.find(mark) + 1 or text.find(f"\\u{ord(mark):04x}") + 1


def _say_thought_lost(renders: Renders, part: Part) -> TemplateError:
    """What is lost, and which settings keep it or do without it."""
    what = part.field or "the reasoning in the content"
    until = renders.like(renders.messages[: part.number + 1])
    cure = "set data.thoughts: drop to train without it, or data.chat_template to one that keeps it"
    for kept_in, settings in (
        (renders, "data.thoughts: keep"),
        (until, "data.thoughts: keep and data.split_turns: true"),
    ):
        if any(part.number not in lost for _, lost in _lost_by_spelling(kept_in)):
            cure = f"set {settings} to write it where the template reads it, or data.thoughts: drop"
            cure += " to train without it"
            break
    return TemplateError(
        f"messages[{part.number}]: the chat template leaves out {what} of this answer, which is"
        f" trained; {cure}"
    )


def _lost_by_spelling(renders: Renders) -> Iterator[tuple[Renders, set[int]]]:
    """The conversation with its reasoning in each place that it may be written in, and the messages
    that lose it there.

    Tags in the content are such a place where the template reads no field, and writes the content
    before the calls that the reasoning leads to.
    """
    in_content = not words_of(renders.template) & set(thoughts.FIELDS)
    for messages in thoughts.spellings(renders.messages, in_content=in_content):
        other = renders.like(messages)
        with contextlib.suppress(TemplateError):
            lost = {part.number for part in what_is_written(other).thoughts}
            if messages == renders.messages or not _is_after_calls(other):
                yield other, lost


def _is_after_calls(renders: Renders) -> bool:
    """Whether reasoning of an answer is written after the calls of that answer."""
    parts = list(parts_of(renders.messages))
    marks = dict(zip(parts, _free_marks(renders, len(parts)), strict=False))
    marks = {part: mark for part, mark in marks.items() if part.kind in ("thought", "name")}
    if not any(part.kind == "name" for part in marks):
        return False
    text = renders.with_parts_marked(marks)
    return any(
        call.kind == "name" and call.number == thought.number and text.find(name) < text.find(mark)
        for thought, mark in marks.items()
        if thought.kind == "thought"
        for call, name in marks.items()
    )


def with_all_thoughts(renders: Renders) -> Renders:
    """The conversation with its reasoning where the template reads it.

    Raises TemplateError if it writes not all of it in any place (`data.thoughts: keep`); that of
    answers which are not trained it may drop.
    """
    fewest: set[int] | None = None
    for other, found in _lost_by_spelling(renders):
        lost = {number for number in found if renders.messages[number].train}
        if not lost:
            return other
        fewest = lost if fewest is None or len(lost) < len(fewest) else fewest
    if fewest is None:
        return renders  # what is refused is said of the row as it is
    number = min(fewest)
    until = renders.like(renders.messages[: number + 1])
    cure = "set data.chat_template to one that writes it"
    is_last = number == len(renders.messages) - 1
    if not is_last and any(number not in lost for _, lost in _lost_by_spelling(until)):
        cure = "set data.split_turns: true, which makes an example of each answer"
    raise TemplateError(
        f"messages[{number}]: data.thoughts: keep, and the chat template leaves out the"
        f" reasoning of this answer; {cure}, or another value"
    )
