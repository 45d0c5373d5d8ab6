"""What a model is asked -> token ids, as training renders what precedes an answer: with the
reasoning that the run kept, and with a proof that the chat template writes every part."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loractl.data import row_notes
from loractl.data.message_parts import parts_of
from loractl.data.rendering import CallsLostError, Renders, TemplateError, Tokenizer, writes_tools
from loractl.data.template import prompt_ids, with_thoughts
from loractl.data.thoughts import prepared
from loractl.data.written import what_is_written
from loractl.records import Conversation


@dataclass(frozen=True)
class Asked:
    """A prompt, and what of its row the model does not see."""

    ids: list[int]
    unread: tuple[str, ...] = ()  # fields of the row, its messages and calls
    lost_thoughts: int = 0  # earlier answers whose reasoning the chat template leaves out


def ask(tokenizer: Tokenizer, row: Conversation, thoughts: str = "auto") -> Asked:
    """The prompt of a row that ends where an answer is wanted; `thoughts` as in `data.thoughts`.

    Raises TemplateError, also for a part that the chat template does not write, as training does.
    """
    if not tokenizer.chat_template:
        unread = _unread_without_template(row)
        return Asked(prompt_ids(tokenizer, row.messages), (*row.unread, *unread))
    row = _as_trained(tokenizer, row, thoughts)
    written = what_is_written(Renders(tokenizer, row.messages, row.tools, row.variables))
    unread = [*row.unread, *row_notes.unread_finder(tokenizer)(row), *written.unread]
    if row.tools and not writes_tools(tokenizer, row.messages, row.tools):
        unread.append("tools")
    return Asked(
        prompt_ids(tokenizer, row.messages, row.tools, row.variables),
        tuple(dict.fromkeys(unread)),
        len({part.number for part in written.thoughts}),
    )


def _as_trained(tokenizer: Tokenizer, row: Conversation, thoughts: str) -> Conversation:
    row = replace(row, messages=tuple(replace(one, spans=None) for one in row.messages))
    (row,) = prepared(row, thoughts, split=False)
    with contextlib.suppress(TemplateError):  # what no spelling keeps is counted as lost
        return with_thoughts(tokenizer, row, thoughts)
    return row


def _unread_without_template(row: Conversation) -> Sequence[str]:
    """The fields of a row whose contents are the prompt as they are."""
    for number, message in enumerate(row.messages):
        if message.tool_calls or message.role == "tool":
            what = "calls" if message.tool_calls else "results of calls"
            raise CallsLostError(
                f"messages[{number}]: the tokenizer has no chat template, so {what} cannot be"
                " written; use a model with one"
            )
    fields = [part.field for part in parts_of(row.messages) if part.field]
    return list(dict.fromkeys([*fields, *(["tools"] if row.tools else [])]))
