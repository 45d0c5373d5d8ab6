"""Spans of one answer (`train_spans`) -> where they stand in the rendered text."""

from dataclasses import replace

from loractl.data.rendering import Renders
from loractl.data.spans import Span, message_error
from loractl.records import Message


def pieces(renders: Renders, answer: Span) -> list[tuple[int, int, int]]:
    """(start, end, start of the answer) of the spans of its content that are trained; one that ends
    the content includes what ends the answer. Raises TemplateError for one that has no place."""
    message = renders.messages[answer.number]
    content, found = message.content, []
    for start, end in message.spans or ():
        first = _place_of(renders, answer.number, start, len(content) - len(content.lstrip()))
        last = _place_of(renders, answer.number, end, len(content.rstrip()), at_end=True)
        if end >= len(content.rstrip()) and not message.tool_calls:
            last = answer.end
        if first < last:
            found.append((first, last, answer.start))
    return found


def _place_of(
    renders: Renders, number: int, character: int, edge: int, *, at_end: bool = False
) -> int:
    """Where a character of the content stands in the whole text: a mark before it must leave the
    rest as it is. Beyond the `edge` of what is not white space the template may have trimmed it."""
    beyond = character > edge if at_end else character < edge
    for place in (character, edge) if beyond else (character,):
        messages = list(renders.messages)
        messages[number] = _with_mark(messages[number], place, renders.mark)
        before, marked, after = renders.of(messages).partition(renders.mark)
        if marked and before + after == renders.whole:
            return len(before)
    raise message_error(
        number,
        f"train_spans: the chat template changes the content, so character {character} of it cannot"
        " be located",
    )


def _with_mark(message: Message, place: int, mark: str) -> Message:
    content = message.content[:place] + mark + message.content[place:]
    parts, at = [], place
    for number, text in enumerate(message.parts):
        is_here = 0 <= at < len(text) or (at == len(text) and number == len(message.parts) - 1)
        parts.append(text[:at] + mark + text[at:] if is_here else text)
        at -= len(text)
    return replace(message, content=content, parts=tuple(parts))
