"""Locates the answers of a conversation in its rendered text, for any chat template.

An answer begins where the generation prompt ends and includes what ends its turn. Most templates
render earlier turns alike whatever follows, so comparing renderings is enough. For those that do
not (Qwen3, DeepSeek-R1, Phi-3), a mark in place of a message's content shows where it is.
"""

import os
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from loractl.data.message_parts import Part, function_of, parts_of, with_marks
from loractl.data.rendering import Renders, TemplateError


@dataclass(frozen=True)
class Span:
    """The characters of one answer in the whole text."""

    number: int  # index of its message
    start: int
    end: int
    ending: Literal["trained", "missing", "untrained"] = "trained"
    """missing: the template writes nothing after the answer that would end it. untrained: it ends
    the answer in another way than the last one, whose end is what a model has to write."""


_apart: dict[Hashable, bool] = {}
"""Whether an answer of a form of conversation was found to hold nothing of another message."""
MOST_KNOWN = 4096


def find_answer(renders: Renders, number: int) -> Span:
    """The span of the answer messages[number]. Raises TemplateError if it cannot be determined."""
    span, is_alike = _locate(renders, number)
    if not is_alike and not _is_apart(renders, number):
        raise message_error(
            number,
            "the chat template writes what others say inside this answer; give its content and its"
            " calls a message each",
        )
    return span


def _is_apart(renders: Renders, number: int) -> bool:
    """Whether no mark in the place of another message's content stands in the answer."""
    parts = list(parts_of(renders.messages))
    form = (renders.template, number, tuple(m.role for m in renders.messages), tuple(parts))
    if form not in _apart:
        others = (part for part in parts if part.number != number and part.kind == "content")
        marked = renders.like(with_marks(renders.messages, dict.fromkeys(others, renders.mark)))
        try:
            span, _ = _locate(marked, number)
            found = renders.mark not in marked.whole[span.start : span.end]
        except TemplateError:  # the template needs to read what is said
            found = True
        while len(_apart) >= MOST_KNOWN:
            del _apart[next(iter(_apart))]
        _apart[form] = found
    return _apart[form]


def _locate(renders: Renders, number: int) -> tuple[Span, bool]:
    """The span, and whether the answer is rendered alike whatever follows it."""
    text, until = renders.whole, renders.text(number + 1)
    if number:
        before = renders.text(number, prompt=True)
        alike, start = until.startswith(before), len(before)
    else:  # few templates render a prompt of no messages
        alike, start = True, _content_span(renders, 0, 1)[0]
    is_alike = alike and text.startswith(until)
    if is_alike:
        end = len(until)
        if renders.messages[number].content.strip() not in until[start:]:
            _content_span(renders, number, number + 1)  # raises if it is left out
        ending = _turn_end(renders, number)
    else:
        start, end, found = _find_in_whole(renders, number)
        if found is None:
            return Span(number, start, end, "untrained"), is_alike
        # After calls comes what closes them, even where nothing ends the turn (GLM).
        has_calls = bool(renders.messages[number].tool_calls)
        ending = "" if has_calls and not _turn_end(renders, number) else found
    # Whitespace after an end-of-turn token belongs to the template; whitespace that itself ends
    # the turn belongs to the model.
    if ending.strip():
        end = start + len(text[start:end].rstrip())
    return Span(number, start, end, "trained" if ending else "missing"), is_alike


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
        if message.weight == 1 and message.spans is None:
            continue
        start, end = _span_of_message(renders, number)
        end = end if end < len(renders.whole) else length
        if message.weight != 1:
            yield start, end, message.weight
        if message.spans is not None:
            yield start, end, 0.0  # but for its spans


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
    """(start, end) of the content of messages[number] in the text of the first n messages, or of
    its calls if it has nothing else.

    If the template adds to the content or removes from it (thoughts), the difference is inside.
    """
    text = renders.text(n, prompt=prompt)
    message = renders.messages[number]
    if message.tool_calls and not message.content.strip():
        prefix, suffix = _around_calls(renders, number, n, prompt=prompt)
    else:
        prefix, suffix = _around_content(renders, number, n, prompt=prompt)
    start = (
        len(prefix) if text.startswith(prefix) else len(_whole_marks(_common_start(text, prefix)))
    )
    tail = len(suffix) if text.endswith(suffix) else len(_common_start(text[::-1], suffix[::-1]))
    if start < len(prefix) and tail < len(suffix):
        raise message_error(
            number,
            "the chat template renders the messages around this one differently depending on its"
            " content, so its trained span cannot be determined",
        )
    if start == len(prefix):
        return start, max(len(text) - tail, start)
    return min(start, len(text) - tail), len(text) - tail


def _around_content(renders: Renders, number: int, n: int, *, prompt: bool) -> tuple[str, str]:
    """What precedes and what follows a mark in the place of the content."""
    marked = renders.text(n, prompt=prompt, marked=number)
    count = marked.count(renders.mark)
    if count != 1:
        times = "leaves out" if not count else "repeats"
        raise message_error(
            number,
            f"the chat template {times} the content of this message, so its trained span cannot be"
            " determined",
        )
    prefix, _, suffix = marked.partition(renders.mark)
    return prefix, suffix


def _around_calls(renders: Renders, number: int, n: int, *, prompt: bool) -> tuple[str, str]:
    """What precedes the name of the first call, and what follows the last mark in the calls."""
    calls, first, other = renders.messages[number].tool_calls, renders.mark, renders.other_mark
    has_arguments = bool(function_of(calls[-1])["arguments"])
    marks = {
        Part(number, "name"): first,
        Part(number, "arguments" if has_arguments else "name", len(calls) - 1): other,
    }
    marked = renders.of(with_marks(renders.messages[:n], marks), prompt=prompt)
    opened = other if marks[Part(number, "name")] == other else first
    if opened not in marked or other not in marked:
        raise message_error(
            number, "the chat template leaves out the tool_calls, so they cannot be found"
        )
    # The name may stand again after the call, in the header of its result.
    suffix = marked[marked.rindex(other) + 1 :] if has_arguments else marked.partition(other)[2]
    for mark, call in ((first, calls[0]), (other, calls[-1])):
        suffix = suffix.replace(mark, function_of(call)["name"])
    return marked.partition(opened)[0], suffix


def _find_in_whole(renders: Renders, number: int) -> tuple[int, int, str | None]:
    """(start, end, ending) of an answer that is rendered differently when messages follow it; the
    ending is None, and not inside, if it is another one than that of the last answer."""
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
            # The template opens this answer in another way than it prompts one (DeepSeek R1, for a
            # second call): only the end of the previous message is not the model's to write.
            common = _common_start(_text_after(renders, number - 1, number), text[after:start])
        start = after + len(common)
    return start, end + len(tail or ""), tail


def _find_ending(renders: Renders, number: int, following: str) -> str | None:
    """What ends an answer, or None if it is followed by something else than where it is the last
    (gpt-oss); `following` is the text after its content in the whole conversation."""
    alone = _text_after(renders, number, number + 1)
    if following.startswith(alone):
        return alone
    # A token that ends every text may follow the last answer's own ending (Phi-3). The ending is
    # then what precedes the next prompt.
    prompted = _text_after(renders, number, number + 1, prompt=True)
    prompt = _prompt_text(renders, number) if number else ""
    ending = prompted.removesuffix(prompt) if prompt else ""
    alike = (
        prompted.endswith(prompt)
        and ending.strip()
        and following.startswith(ending)
        and alone.startswith(ending.rstrip())
    )
    return ending if alike else None


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


def message_error(number: int, why: str) -> TemplateError:
    return TemplateError(f"messages[{number}]: {why}")
