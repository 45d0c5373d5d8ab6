"""[Message] -> text -> token ids, and which of them are trained, for any chat template.

The trained spans come from the difference of rendered texts, mapped through the character offsets
of one tokenisation of the whole, so no template needs `{% generation %}` marks. Prompts for
generation are rendered here too: training and generation share one path to token ids.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jinja2

from loractl.records import UNTRAINED, Message


class Tokenizer(Protocol):
    """What this room needs of a tokenizer."""

    chat_template: Any
    eos_token: str | None
    bos_token: str | None
    bos_token_id: int | None

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    def __call__(self, text: str, **options: Any) -> Any: ...


class TemplateError(ValueError):
    """A conversation that the chat template cannot render so that its answers can be told."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, with the character spans of its assistant messages."""

    text: str
    spans: tuple[tuple[int, int], ...]  # (start, end) of each message that may be trained


def encode(
    tokenizer: Tokenizer, messages: Sequence[Message], *, train_on: str
) -> tuple[list[int], list[int]]:
    """Token ids of a row, and labels that are UNTRAINED where a token is not trained.

    The first token is never trained: nothing predicts it. Raises TemplateError.
    """
    rendered = render(tokenizer, messages, train_on=train_on)
    encoded = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = list(encoded["input_ids"])
    labels = [UNTRAINED] * len(ids)
    spans = rendered.spans if train_on != "all" else ((0, len(rendered.text)),)
    for position, (start, end) in enumerate(encoded["offset_mapping"]):
        # A token of no width (a marker some tokenizers add) belongs to no span.
        if position and start < end and any(a <= start < b for a, b in spans):
            labels[position] = ids[position]
    return ids, labels


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, train_on: str) -> Rendered:
    """Render a row and find the text of its trained messages, end-of-turn token included."""
    if messages[0].role == "":  # plain text, trained whole
        text = _bos(tokenizer) + messages[0].content + (tokenizer.eos_token or "")
        return Rendered(text, ((0, len(text)),))
    if not tokenizer.chat_template:
        return _without_template(tokenizer, messages)
    text = _apply(tokenizer, messages)
    answers = [number for number, m in enumerate(messages) if m.role == "assistant"]
    if train_on == "last":
        answers = answers[-1:]
    trained = [number for number in answers if messages[number].train]
    return Rendered(text, tuple(_span(tokenizer, messages, number, text) for number in trained))


def _span(
    tokenizer: Tokenizer, messages: Sequence[Message], number: int, text: str
) -> tuple[int, int]:
    """Where message `number` stands in `text`: from what prompts it to the end of its turn."""
    until = _apply(tokenizer, messages[: number + 1])
    if number:
        before = _apply(tokenizer, messages[:number], prompt=True)
    else:
        before = _opening(tokenizer, messages[0], until)
    if not (text.startswith(until) and until.startswith(before)):
        raise TemplateError(
            f"messages[{number}]: the chat template renders this answer otherwise once more"
            " messages follow, so what is trained cannot be told; use train_on: last, or split"
            " the row"
        )
    answer = messages[number].content.strip()
    tail = until[len(before) :].partition(answer)[2] if answer else until[len(before) :]
    # Space after an end-of-turn token is the template's; space that itself ends the turn is the
    # model's.
    end = len(until.rstrip()) if tail.strip() else len(until)
    return len(before), end


def _opening(tokenizer: Tokenizer, first: Message, until: str) -> str:
    """What stands before the content of a first message: of none, few templates render a prompt."""
    other = "1" if first.content.strip().startswith("0") else "0"
    return os.path.commonprefix([until, _apply(tokenizer, [replace(first, content=other)])])


def _without_template(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    if [m.role for m in messages] != ["user", "assistant"]:
        raise TemplateError(
            "the tokenizer has no chat template, so a conversation cannot be rendered; use a"
            " model with one, or prompt and completion rows"
        )
    prompt = _bos(tokenizer) + messages[0].content
    completion = messages[1].content + (tokenizer.eos_token or "")
    span = (len(prompt), len(prompt) + len(completion))
    return Rendered(prompt + completion, (span,) if messages[1].train else ())


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to where the model's answer begins. Raises TemplateError."""
    if tokenizer.chat_template:
        text = _apply(tokenizer, messages, prompt=True)
    else:
        text = _bos(tokenizer) + "".join(m.content for m in messages)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _apply(tokenizer: Tokenizer, messages: Sequence[Message], *, prompt: bool = False) -> str:
    conversation = [{"role": m.role, "content": m.content} for m in messages]
    try:
        text: str = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=prompt
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise TemplateError(f"the chat template refuses the row: {error}") from None
    return text


def _bos(tokenizer: Tokenizer) -> str:
    """The beginning-of-sequence token, where this tokenizer puts one before plain text."""
    first = list(tokenizer("")["input_ids"])[:1]
    return tokenizer.bos_token or "" if first == [tokenizer.bos_token_id] else ""
