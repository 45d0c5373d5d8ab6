"""What a chat template writes of a conversation: contents, reasoning, each call's name and
arguments, other fields. Proven by marks in the place of each part, never by looking for its text,
which may also stand elsewhere: in an answer that repeats a tool's result, or in what the template
itself says.
"""

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

from loractl.config.jinja_text import words_of
from loractl.data import thoughts
from loractl.data.message_parts import FIRST_MARK, LAST_MARK, Part, function_of, parts_of, text_of
from loractl.data.rendering import CallsLostError, Renders, TemplateError

MOST_PROVEN = 4096

_proven: dict[Hashable, "Written"] = {}
"""Forms of conversations whose texts were proven; the oldest make room."""


@dataclass(frozen=True)
class Written:
    """What a template leaves out of a conversation without being asked to."""

    thoughts: tuple[Part, ...] = ()  # reasoning
    never: tuple[Part, ...] = ()  # of it, what is not written in a last answer either
    unread: tuple[str, ...] = ()  # fields of messages


def forget_() -> None:
    """Forget the forms proven so far."""
    _proven.clear()


def what_is_written(renders: Renders) -> Written:
    """What the template leaves out of the conversation: reasoning, and fields that it never reads.

    Conversations of the same form are rendered alike, so a form is proven once; a row whose texts
    do not follow each other in what was rendered is proven by itself. Raises TemplateError if
    anything else is left out.
    """
    parts = list(parts_of(renders.messages))
    form = (renders.template, bool(renders.tools), str(renders.variables), _form_of(renders, parts))
    if form in _proven and _texts_follow(renders, parts, _proven[form]):
        return _without_repeated(renders, parts, _proven[form])
    lost = list(_lost_among(renders, parts, _free_marks(renders, len(parts))))
    for part in lost:
        if part.kind not in ("thought", "field"):
            raise _say_lost(renders, part)
    lost_thoughts = tuple(part for part in lost if part.kind == "thought")
    found = Written(
        thoughts=lost_thoughts,
        never=tuple(part for part in lost_thoughts if not _is_written_last(renders, part)),
        unread=tuple(dict.fromkeys(part.field for part in lost if part.kind == "field")),
    )
    while len(_proven) >= MOST_PROVEN:
        del _proven[next(iter(_proven))]
    _proven[form] = found
    return _without_repeated(renders, parts, found)


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
        tuple(len(function_of(call)["arguments"]) for call in message.tool_calls)
        for message in renders.messages
    )
    return tuple(message.role for message in renders.messages), tuple(parts), tuple(calls)


def _texts_follow(renders: Renders, parts: Sequence[Part], written: Written) -> bool:
    """Whether the contents and the reasoning stand in the text one after another."""
    at, text = 0, renders.whole
    for part in parts:
        if part.kind not in ("content", "thought") or part in written.thoughts:
            continue
        content = text_of(renders.messages[part.number], part).strip()
        at = text.find(content, at)
        if at < 0:
            return False
        at += len(content)
    return True


def _free_marks(renders: Renders, count: int) -> list[str]:
    """Characters that do not occur in the conversation; fewer than asked for in a very long one."""
    known = set(renders.whole).union(*(message.content for message in renders.messages))
    free = (chr(code) for code in range(FIRST_MARK, LAST_MARK - 1) if chr(code) not in known)
    return [mark for mark, _ in zip(free, range(count), strict=False)]


def _lost_among(renders: Renders, parts: Sequence[Part], marks: Sequence[str]) -> Iterator[Part]:
    """The parts that the template does not write. All are marked at once; where a mark is missing
    then, because the template reads what is said, each part is marked alone."""
    for start in range(0, len(parts), max(1, len(marks))):
        group = dict(zip(parts[start : start + len(marks)], marks, strict=False))
        try:
            text = renders.with_parts_marked(group)
        except TemplateError:
            text = ""
        for part, mark in group.items():
            if not _stands_in(mark, text) and not _is_written_alone(renders, part, mark):
                yield part


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
    return mark in text or f"\\u{ord(mark):04x}" in text  # as JSON escapes it


def _say_lost(renders: Renders, part: Part) -> TemplateError:
    message = renders.messages[part.number]
    if part.kind == "content":
        what = f"the content of this {message.role} message"
    elif part.at == 0:
        what = "the tool_calls of this message"
    else:
        name = function_of(message.tool_calls[part.at])["name"]
        what = f"the tool_calls of this message from number {part.at + 1} on ({name})"
        what += "; give each call a message of its own, followed by its result"
    error_of = CallsLostError if part.is_of_call or message.role == "tool" else TemplateError
    return error_of(f"messages[{part.number}]: the chat template leaves out {what}")


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
