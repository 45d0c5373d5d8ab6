"""What is odd about a row though it can be trained on: prompts that are rendered already, answers
that bring their own end token, and what its chat template never reads."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from loractl.config.jinja_text import variables_read
from loractl.data.calls import other_fields, without_field
from loractl.data.rendering import TemplateError, Tokenizer, apply
from loractl.data.rows import VARIABLES
from loractl.records import Conversation, Message

_RENDERED = (
    r"<\|im_start\|>", r"<\|start_header_id\|>", "<start_of_turn>", r"\[INST\]", r"<\|user\|>",
    r"### (?:Instruction|Response):", "\n\n(?:Human|Assistant): ",
)  # fmt: skip
"""The marks of well-known chat templates: a prompt that holds them is a rendered conversation."""

TAIL = 80  # characters of an answer that find it in its rendering


def template_tokens(tokenizer: Tokenizer) -> list[str]:
    """The added tokens that the chat template writes, or that surround a text without one; not
    those that a run has added for its rows."""
    template = str(tokenizer.chat_template or "")
    plain = (Message("user", "a"), Message("assistant", "b"))
    written = f"{template}{tokenizer.bos_token or ''}{tokenizer.eos_token or ''}"
    if template:
        with contextlib.suppress(TemplateError):  # its text must do
            written += apply(tokenizer, plain)
    words = tokenizer.added_tokens_encoder
    return [word for word in words if len(word) > 2 and not word.isspace() and word in written]


def finder(tokens: Sequence[str]) -> Callable[[Conversation], str]:
    """A function that finds the first of these tokens, or the first mark of a chat template, in the
    prompts of a row; "" if there is none."""
    pattern = re.compile("|".join([*map(re.escape, tokens), *_RENDERED]))

    def find(conversation: Conversation) -> str:
        for message in conversation.messages:
            if message.role in ("system", "user", "tool") and (
                found := pattern.search(message.content)
            ):
                return found[0].strip()
        return ""

    return find


def doubled_end(answers: Sequence[Message], text: str, tokens: Sequence[str]) -> str:
    """The token that ends one of these answers in the row and is written again after it; or ""."""
    for message in answers:
        content = message.content.strip()
        end = next((token for token in tokens if content.endswith(token)), "")
        if end and re.search(rf"{re.escape(content[-TAIL:])}\s*{re.escape(end)}", text):
            return end
    return ""


def unread_finder(tokenizer: Tokenizer) -> Callable[[Conversation], list[str]]:
    """A function that names the variables of a row and the fields of its calls which the chat
    template never reads; whether it reads a field of a call is found by rendering, once."""
    template = str(tokenizer.chat_template or "")
    is_read: dict[str, bool] = {}

    def find(conversation: Conversation) -> list[str]:
        names = conversation.variables
        found = [f"{VARIABLES}.{n}" for n in names if n not in _variables_of(template)]
        for name in _fields_of_calls(conversation):
            if name not in is_read:
                is_read[name] = _is_read(tokenizer, conversation, name)
            if not is_read[name]:
                found.append(f"messages[].tool_calls[].{name}")
        return found

    return find


@lru_cache(8)
def _variables_of(template: str) -> frozenset[str]:
    return variables_read(template)  # 44 ms for that of gpt-oss


def _fields_of_calls(conversation: Conversation) -> list[str]:
    calls = (call for message in conversation.messages for call in message.tool_calls)
    return sorted(set[str]().union(*map(other_fields, calls)))


def _is_read(tokenizer: Tokenizer, row: Conversation, name: str) -> bool:
    """Whether the text is another one without this field of calls."""
    if not tokenizer.chat_template:
        return False
    without = [
        replace(message, tool_calls=tuple(without_field(c, name) for c in message.tool_calls))
        for message in row.messages
    ]
    try:
        whole = apply(tokenizer, row.messages, row.tools, row.variables)
        return apply(tokenizer, without, row.tools, row.variables) != whole
    except TemplateError:  # it must be there, or the row is refused anyway
        return True


def null_arguments(messages: Sequence[Message]) -> int:
    """How many null arguments of calls were left out as padding."""
    return sum(_nulls_of(messages))


def _nulls_of(messages: Sequence[Message]) -> Iterator[int]:
    for message in messages:
        for call in message.tool_calls:
            yield getattr(call.get("function", call)["arguments"], "nulls", 0)
