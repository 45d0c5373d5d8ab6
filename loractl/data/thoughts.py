"""Reasoning in an answer: where it stands, and which of it a row keeps before it is rendered.

Rows write it into a field of the message or between tags in the content; which of them a chat
template reads, and for which answers, is found by rendering (written.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from loractl.data.row_errors import RowError
from loractl.records import Conversation, Message

FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")
"""The fields of a message that hold its reasoning, in the words of the templates that read them."""

TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel>thought\n", "<channel|>"),
)  # fmt: skip
"""What surrounds reasoning in the content of an answer: Qwen and DeepSeek, Claude-made rows,
Magistral, Seed-OSS, Gemma 4."""

_TAGGED = re.compile(
    "|".join(f"{re.escape(opened)}(.*?){re.escape(closed)}" for opened, closed in TAGS), re.DOTALL
)
_BLOCKS = re.compile(
    "|".join(
        [
            *(f"{re.escape(opened)}.*?{re.escape(closed)}" for opened, closed in TAGS),
            r"<\|channel\|>analysis.*?<\|end\|>(?:<\|start\|>assistant)?",  # gpt-oss
            r"(?:<\|start\|>assistant)? to=self.*?<\|eom\|>(?:<\|start\|>assistant)?",  # Muse
        ]
    ),
    re.DOTALL,
)
_FINAL = "<|channel|>final<|message|>"
_CLOSED = re.compile("|".join(re.escape(closed) for _, closed in TAGS))


class Piece(NamedTuple):
    """A stretch of a content."""

    text: str
    kind: Literal["content", "thought", "tag"]


def pieces(message: Message, text: str) -> Iterator[Piece]:
    """The stretches of a text of this message; joined they are the text again.

    Reasoning whose opening tag is missing, since the generation prompt has written it, begins the
    text (DeepSeek R1).
    """
    if message.role != "assistant" or not (closed := _CLOSED.search(text)):
        yield Piece(text, "content")
        return
    at = 0
    if not any(opened in text[: closed.start()] for opened, _ in TAGS):
        yield Piece(text[: closed.start()], "thought")
        yield Piece(closed[0], "tag")
        at = closed.end()
    for found in _TAGGED.finditer(text, at):
        start, end = next(found.span(n) for n in range(1, len(TAGS) + 1) if found[n] is not None)
        yield Piece(text[at : found.start()], "content")
        yield Piece(text[found.start() : start], "tag")
        yield Piece(text[start:end], "thought")
        yield Piece(text[end : found.end()], "tag")
        at = found.end()
    yield Piece(text[at:], "content")


def has_thoughts(message: Message) -> bool:
    """Whether a message holds reasoning, in a field or in its content."""
    return bool(_in_fields(message)) or any(
        piece.kind == "thought" and piece.text.strip() for piece in pieces(message, message.content)
    )


def _in_fields(message: Message) -> dict[str, str]:
    if message.role != "assistant":
        return {}
    found = {name: message.extra.get(name) for name in FIELDS}
    return {n: text for n, text in found.items() if isinstance(text, str) and text.strip()}


def without_thoughts(message: Message) -> Message:
    """The message without its reasoning, its tags and the white space after them; `spans` are of
    what is left."""
    if message.role != "assistant":
        return message
    extra = {name: value for name, value in message.extra.items() if name not in FIELDS}
    content = _untagged(message, message.content)
    parts = tuple(_untagged(message, text) for text in message.parts)
    if "".join(parts) != content:  # tags in two parts
        parts = (content,) if parts else ()
    spans = message.spans
    if spans is not None:
        moved = (_without_dropped(message, span) for span in spans)
        spans = tuple((start, end) for start, end in moved if start < end)
    return replace(message, content=content, extra=extra, parts=parts, spans=spans)


def _untagged(message: Message, text: str) -> str:
    return "".join(text[start:end] for start, end in _untagged_spans(message, text))


def _untagged_spans(message: Message, text: str) -> Iterator[tuple[int, int]]:
    """The stretches of a text that are no reasoning, without the white space after its tags."""
    start, is_after_tag = 0, False
    for piece in pieces(message, text):
        end = start + len(piece.text)
        if piece.kind == "content":
            trimmed = len(piece.text) - len(piece.text.lstrip()) if is_after_tag else 0
            yield start + trimmed, end
        start, is_after_tag = end, piece.kind == "tag"


def _without_dropped(message: Message, span: tuple[int, int]) -> tuple[int, int]:
    """Where a span of the content stands once the reasoning is taken out of it."""
    kept = list(_untagged_spans(message, message.content))
    start, end = (sum(max(0, min(e, place) - s) for s, e in kept) for place in span)
    return start, end


def separated(message: Message) -> tuple[str, Message]:
    """The reasoning of an answer, and the answer without it. What it says twice, under two names,
    is one reasoning."""
    found = pieces(message, message.content)
    inside = [piece.text.strip("\n") for piece in found if piece.kind == "thought"]
    texts = [*_in_fields(message).values(), *(text for text in inside if text.strip())]
    return "\n".join({text.strip(): text for text in texts}.values()), without_thoughts(message)


def after_thoughts(text: str) -> str:
    """What a generated answer says after its reasoning: the blocks that it begins with.

    The prompt may have opened the first of them; then its end stands at the edge of a line, as
    templates write it, where a tag that an answer speaks of stands among words.
    """
    at = 0
    while block := _BLOCKS.match(text, at) or _BLOCKS.match(text, _not_space(text, at)):
        at = block.end()
    closed = _CLOSED.search(text)
    if not at and closed and not any(opened in text[: closed.start()] for opened, _ in TAGS):
        before, after = text[: closed.start()].rstrip(" \t"), text[closed.end() :].lstrip(" \t")
        if before[-1:] in ("", "\n") or after[:1] in ("", "\n"):
            at = closed.end()
    return text[at:].rpartition(_FINAL)[2]


def _not_space(text: str, at: int) -> int:
    return len(text) - len(text[at:].lstrip())


def prepared(
    conversation: Conversation, setting: str, split: bool, *, train_on: str = "assistant"
) -> Iterator[Conversation]:
    """What a row is rendered as: the reasoning that `data.thoughts` keeps, and with `split` one
    conversation for each of its answers. Raises RowError where nothing is left of a
    span that is trained."""
    for one in _answers_apart(conversation) if split else (conversation,):
        yield _chosen(one, setting, train_on)


def _chosen(conversation: Conversation, setting: str, train_on: str) -> Conversation:
    """`drop` keeps none of the reasoning, `last` that of the answers after the last question."""
    messages = conversation.messages
    if setting == "drop":
        kept = len(messages)
    elif setting == "last":
        asked = [number for number, message in enumerate(messages) if message.role == "user"]
        kept = max(asked, default=-1)
    else:
        return conversation
    last = max((n for n, m in enumerate(messages) if m.role == "assistant"), default=-1)
    for number, message in enumerate(messages[:kept]):
        if number == last or train_on != "last":
            _refuse_spans_of_thoughts(message, number, setting)
    left = (without_thoughts(m) if n < kept else m for n, m in enumerate(messages))
    return replace(conversation, messages=tuple(left))


def _refuse_spans_of_thoughts(message: Message, number: int, setting: str) -> None:
    for span in (message.spans or ()) if message.train else ():
        start, end = _without_dropped(message, span)
        if start == end:
            raise RowError(
                f"messages[{number}].train_spans has {list(span)}, which holds reasoning alone,"
                f" and data.thoughts: {setting} takes that out; remove the span, or set"
                " data.thoughts: auto"
            )


def _answers_apart(conversation: Conversation) -> Iterator[Conversation]:
    """One conversation for each trained answer, with what precedes it as context
    (`data.split_turns`): as generation will see it, where a template strips earlier reasoning.

    A conversation without a trained answer stays whole.
    """
    messages = conversation.messages
    trained = [n for n, m in enumerate(messages) if m.role == "assistant" and m.train]
    for number in trained:
        context = (
            replace(message, weight=0.0) if message.role == "assistant" else message
            for message in messages[:number]
        )
        yield replace(conversation, messages=(*context, messages[number]))
    if not trained:
        yield conversation


def spellings(
    messages: Sequence[Message], *, in_content: bool = True
) -> Iterator[tuple[Message, ...]]:
    """The same messages with their reasoning in each field in turn, then in tags in the content:
    the ways in which templates read it, as given first.

    Reasoning of which `spans` choose a stretch stays where it is.
    """
    yield tuple(messages)
    if any(map(_has_spans_of_thoughts, messages)):
        return
    for name in FIELDS:
        yield tuple(_spelled(message, name) for message in messages)
    if in_content:
        yield tuple(_spelled(message, "") for message in messages)


def _has_spans_of_thoughts(message: Message) -> bool:
    at = 0
    for piece in pieces(message, message.content):
        until = at + len(piece.text)
        if piece.kind == "thought" and message.train:
            spans = message.spans or ()
            if any(start < until and at < end for start, end in spans):
                return True
        at = until
    return False


def _spelled(message: Message, name: str) -> Message:
    thought, answer = separated(message)
    if not thought.strip():
        return message
    if name:
        extra: Mapping[str, object] = {**answer.extra, name: thought}
        return replace(answer, extra=extra)
    opened, closed = TAGS[0]
    before = f"{opened}\n{thought}\n{closed}\n\n"
    text, spans = before + answer.content, answer.spans
    if spans is not None:
        spans = tuple((start + len(before), end + len(before)) for start, end in spans)
    return replace(answer, content=text, parts=(text,) if answer.parts else (), spans=spans)
