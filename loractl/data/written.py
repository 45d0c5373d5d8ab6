"""Whether a chat template writes all that a conversation says: contents, and each call's name and
arguments. Proven by marks in the place of each part, never by looking for its text, which may also
stand elsewhere: in an answer that repeats a tool's result, or in what the template itself says.
"""

from collections.abc import Hashable, Sequence

from loractl.data.rendering import Part, Renders, TemplateError, parts_of

FIRST_MARK, LAST_MARK = 0xE000, 0xF8FF  # Unicode's private use area

_proven: dict[Hashable, None] = {}
"""Forms of conversations that a template was seen to write whole; the oldest make room."""
MOST_PROVEN = 4096


def check_all_is_written(renders: Renders) -> None:
    """Raise TemplateError if the template silently leaves out a part of the conversation.

    Conversations of the same form are rendered alike, so a form is proven once; a row whose texts
    do not follow each other in what was rendered is proven by itself.
    """
    parts = list(parts_of(renders.messages))
    form = (renders.template, renders.has_tools, _form_of(renders))
    if form in _proven and _texts_follow(renders):
        return
    marks = _free_marks(renders, len(parts))
    if (lost := _lost_among(renders, parts, marks)) is not None:
        raise _say_lost(renders, lost)
    while len(_proven) >= MOST_PROVEN:
        del _proven[next(iter(_proven))]
    _proven[form] = None


def _form_of(renders: Renders) -> Hashable:
    """What a template can tell apart without reading what is said."""
    return tuple(
        (
            message.role,
            bool(message.content.strip()),
            tuple(sorted(message.extra)),
            tuple(len(call.get("function", call)["arguments"]) for call in message.tool_calls),
        )
        for message in renders.messages
    )


def _texts_follow(renders: Renders) -> bool:
    """Whether the contents stand in the text one after another."""
    at, text = 0, renders.whole
    for message in renders.messages:
        content = message.content.strip()
        at = text.find(content, at)
        if at < 0:
            return False
        at += len(content)
    return True


def _free_marks(renders: Renders, count: int) -> list[str]:
    """Characters that do not occur in the conversation; fewer than asked for in a very long one."""
    known = set(renders.whole).union(*(message.content for message in renders.messages))
    free = (chr(code) for code in range(FIRST_MARK, LAST_MARK + 1) if chr(code) not in known)
    return [mark for mark, _ in zip(free, range(count), strict=False)]


def _lost_among(renders: Renders, parts: Sequence[Part], marks: Sequence[str]) -> Part | None:
    """The first part that the template does not write. All are marked at once; where a mark is
    missing then, because the template reads what is said, each part is marked alone."""
    for start in range(0, len(parts), max(1, len(marks))):
        group = dict(zip(parts[start : start + len(marks)], marks, strict=False))
        try:
            text = renders.with_parts_marked(group)
        except TemplateError:
            text = ""
        for part, mark in group.items():
            if not _stands_in(mark, text) and not _is_written_alone(renders, part, mark):
                return part
    return None


def _is_written_alone(renders: Renders, part: Part, mark: str) -> bool:
    try:
        return _stands_in(mark, renders.with_parts_marked({part: mark}))
    except TemplateError:  # it must be what it is, so it was read
        return True


def _stands_in(mark: str, text: str) -> bool:
    return mark in text or f"\\u{ord(mark):04x}" in text  # as JSON escapes it


def _say_lost(renders: Renders, part: Part) -> TemplateError:
    message = renders.messages[part.number]
    if part.call < 0:
        what = f"the content of this {message.role} message"
    elif len(message.tool_calls) == 1:
        what = "the tool_calls of this message"
    else:
        call = message.tool_calls[part.call]
        name = call.get("function", call)["name"]
        what = f"the tool_calls of this message from number {part.call + 1} on ({name})"
        what += "; give each call a message of its own, followed by its result"
    return TemplateError(f"messages[{part.number}]: the chat template leaves out {what}")
