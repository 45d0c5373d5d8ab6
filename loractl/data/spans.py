"""Locates the answers of a conversation in its rendered text, for any chat template.

An answer begins where the generation prompt ends and includes what ends its turn. Most templates
render earlier turns alike whatever follows, so comparing renderings is enough. For those that do
not (Qwen3, DeepSeek-R1, Phi-3), a mark in place of a message's content shows where it is.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loractl.data.rendering import Renders, TemplateError


@dataclass(frozen=True)
class Span:
    """The characters of one answer in the whole text."""

    number: int  # index of its message
    start: int
    end: int
    ended: bool  # False: the template writes nothing after an answer that would end it


def find_answer(renders: Renders, number: int) -> Span:
    """The span of the answer messages[number]. Raises TemplateError if it cannot be determined."""
    text, until = renders.whole, renders.text(number + 1)
    if number:
        before = renders.text(number, prompt=True)
        alike, start = until.startswith(before), len(before)
    else:  # few templates render a prompt of no messages
        alike, start = True, _content_span(renders, 0, 1)[0]
    if alike and text.startswith(until):
        end = len(until)
        if renders.messages[number].content.strip() not in until[start:]:
            _content_span(renders, number, number + 1)  # raises if it is left out
        ending = _turn_end(renders, number)
    else:
        start, end, ending = _find_in_whole(renders, number)
    # Whitespace after an end-of-turn token belongs to the template; whitespace that itself ends
    # the turn belongs to the model.
    if ending.strip():
        end = start + len(text[start:end].rstrip())
    return Span(number, start, end, ended=ending != "")


def is_ended(renders: Renders, number: int) -> bool:
    """Whether the template writes something after an answer that is the last message."""
    return _turn_end(renders, number) != ""


def unequal(renders: Renders, length: int) -> Iterator[tuple[int, int, float]]:
    """(start, end, weight) of each message that does not weigh 1: an answer with its end, or the
    content of another.

    `length` is that of the text, to which an eos token may have been added: it belongs to the
    answer before it. Raises TemplateError where a place cannot be told.
    """
    for number, message in enumerate(renders.messages):
        if message.weight != 1:
            start, end = _span_of_message(renders, number)
            yield start, end if end < len(renders.whole) else length, message.weight


def between(spans: Sequence[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    """What is left of a text of this length without some spans of it, in order."""
    at = 0
    for start, stop in [*sorted(spans), (end, end)]:
        if start > at:
            yield at, start
        at = max(at, stop)


def _span_of_message(renders: Renders, number: int) -> tuple[int, int]:
    if renders.messages[number].role == "assistant":
        span = find_answer(renders, number)
        return span.start, span.end
    return _content_span(renders, number, len(renders.messages))


def _turn_end(renders: Renders, number: int) -> str:
    """What the template writes after messages[number] as the last; "" only if it is nothing."""
    message, n = renders.messages[number], number + 1
    if message.tool_calls:
        # Calls come after the content: the answer without them shows what ends a turn.
        bare = renders.text(n, marked=number, without_calls=True)
        return bare.rpartition(renders.mark)[2]
    until, answer = renders.text(n), message.content.strip()
    closing = until.rstrip()[-1:]
    if answer and closing != answer[-1]:
        return closing  # the usual case, and cheap: it is not part of the answer
    return until[_content_span(renders, number, n)[1] :]


def _content_span(
    renders: Renders, number: int, n: int, *, prompt: bool = False
) -> tuple[int, int]:
    """(start, end) of the content of messages[number] in the text of the first n messages.

    If the template adds to the content or removes from it (thoughts), the difference is inside.
    """
    text = renders.text(n, prompt=prompt)
    marked = renders.text(n, prompt=prompt, marked=number)
    count = marked.count(renders.mark)
    if count != 1:
        times = "leaves out" if not count else "repeats"
        raise _message_error(
            number,
            f"the chat template {times} the content of this message, so its trained span cannot be"
            " determined",
        )
    prefix, _, suffix = marked.partition(renders.mark)
    start = (
        len(prefix) if text.startswith(prefix) else len(_whole_marks(_common_start(text, prefix)))
    )
    tail = len(suffix) if text.endswith(suffix) else len(_common_start(text[::-1], suffix[::-1]))
    if start < len(prefix) and tail < len(suffix):
        raise _message_error(
            number,
            "the chat template renders the messages around this one differently depending on its"
            " content, so its trained span cannot be determined",
        )
    if start == len(prefix):
        return start, max(len(text) - tail, start)
    return min(start, len(text) - tail), len(text) - tail


def _find_in_whole(renders: Renders, number: int) -> tuple[int, int, str]:
    """(start, end, ending) of an answer that is rendered differently when messages follow it."""
    text = renders.whole
    start, end = _content_span(renders, number, len(renders.messages))
    tail = _find_ending(renders, number, text[end:])
    if number:
        # Between the previous message and the content come the generation prompt and then what
        # the template adds (an empty thinking block), which generation has to write too.
        opening = _text_after(renders, number - 1, number, prompt=True)
        after = _content_span(renders, number - 1, len(renders.messages))[1]
        common = _common_start(opening, text[after:start])
        if text[after:end].startswith(opening):
            common = opening
        elif common != text[after:start]:
            common = _whole_marks(common)
        if opening and not common:
            raise _message_error(
                number,
                f"the chat template prompts an answer with {opening!r} and begins this one with"
                f" {text[after:start]!r}, so its trained span cannot be determined",
            )
        start = after + len(common)
    return start, end + len(tail), tail


def _find_ending(renders: Renders, number: int, following: str) -> str:
    """What ends an answer; `following` is the text after its content in the whole conversation."""
    alone = _text_after(renders, number, number + 1)
    if following.startswith(alone):
        return alone
    # A token that ends every text may follow the last answer's own ending (Phi-3). The ending is
    # then what precedes the next prompt.
    prompted = _text_after(renders, number, number + 1, prompt=True)
    prompt = _prompt_text(renders, number) if number else ""
    ending = prompted.removesuffix(prompt) if prompt else ""
    if not (
        prompted.endswith(prompt)
        and ending.strip()
        and following.startswith(ending)
        and alone.startswith(ending.rstrip())
    ):
        raise _message_error(
            number,
            f"the chat template ends this answer with {alone[:40]!r} when it is last but continues"
            f" with {following[:40]!r} here, so its end cannot be determined; use train_on: last,"
            " or split the row",
        )
    return ending


def _prompt_text(renders: Renders, number: int) -> str:
    """What prompts the answer messages[number], without the end of the previous message."""
    asked = _text_after(renders, number - 1, number, prompt=True)
    plain = _text_after(renders, number - 1, number)
    common = _common_start(asked, plain)
    return asked[len(common if common in (asked, plain) else _whole_marks(common)) :]


def _text_after(renders: Renders, number: int, n: int, *, prompt: bool = False) -> str:
    """What follows the content of messages[number] in the first n messages."""
    end = _content_span(renders, number, n, prompt=prompt)[1]
    return renders.text(n, prompt=prompt)[end:]


def _common_start(a: str, b: str) -> str:
    return os.path.commonprefix([a, b])


def _whole_marks(text: str) -> str:
    """A common prefix, without the part of a role marker that two markers happen to share."""
    found = re.match(r".*[\s>\]:]", text, re.DOTALL)
    return found[0] if found else ""


def _message_error(number: int, why: str) -> TemplateError:
    return TemplateError(f"messages[{number}]: {why}")
