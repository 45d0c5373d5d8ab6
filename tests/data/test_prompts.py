"""Prompts are rendered as rows are trained: with the reasoning that the run kept, and no part of
the conversation lost in silence."""

from typing import Any

import pytest

from loractl.data.encoding import encode_many
from loractl.data.prompts import ask
from loractl.data.rendering import CallsLostError, TemplateError
from loractl.data.thoughts import prepared
from loractl.records import UNTRAINED, Conversation, Message
from tests.data.test_template_golden import TOOL, template_tokenizer
from tests.tiny import make_tokenizer

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
ASK = Message("user", "Weather in Oslo?")
THOUGHT = Message("assistant", "<think>\nsay hi\n</think>\n\nHi.")
CALLING = Message("assistant", "", tool_calls=(CALL,))
RESULT = Message("tool", "Cold.")


def tokenizer_of(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template_tokenizer(template).chat_template
    return tokenizer


@pytest.mark.parametrize("thoughts", ["auto", "drop", "last", "keep"])
@pytest.mark.parametrize("template", ["chatml", "chatml_tools", "qwen3"])
@pytest.mark.parametrize("in_field", [True, False])
def test_a_prompt_is_how_the_trained_row_begins(
    thoughts: str, template: str, in_field: bool
) -> None:
    tokenizer, earlier = tokenizer_of(template), THOUGHT
    if in_field:
        earlier = Message("assistant", "Hi.", extra={"reasoning_content": "say hi"})
    context = (Message("user", "Hello"), earlier, ASK)
    answer = Message("assistant", "<think>\nlook\n</think>\n\nCold.")
    whole, splits = Conversation((*context, answer)), template == "qwen3"
    *_, row = prepared(whole, thoughts, splits)
    (trained,) = encode_many(tokenizer, [row], train_on="last", thoughts=thoughts)
    assert not isinstance(trained, TemplateError)
    first = next(n for n, label in enumerate(trained.labels) if label != UNTRAINED)
    asked = ask(tokenizer, Conversation(context), thoughts)
    assert asked.ids == trained.ids[:first]
    assert asked.lost_thoughts == trained.text.lost_thoughts


def test_calls_and_results_that_a_template_leaves_out_are_refused_as_in_training() -> None:
    row = Conversation((ASK, CALLING, RESULT), (TOOL,))
    with pytest.raises(CallsLostError, match=r"messages\[1\]: .* leaves out the tool_calls"):
        ask(tokenizer_of("chatml"), row)
    tokenizer = tokenizer_of("chatml_tools")
    assert '"city": "Oslo"' in tokenizer.decode(ask(tokenizer, row).ids)
    plain = tokenizer_of("chatml")
    plain.chat_template = None
    with pytest.raises(CallsLostError, match=r"messages\[1\]: the tokenizer has no chat template"):
        ask(plain, row)


def test_what_nothing_reads_is_named() -> None:
    message = Message("user", "Hi", extra={"mood": "kind"})
    row = Conversation((message,), (TOOL,), {"tone": 1}, ("history",))
    unread = {"history", "mood", "tools"}
    assert set(ask(tokenizer_of("chatml"), row).unread) == unread | {"chat_template_kwargs.tone"}
    assert set(ask(tokenizer_of("chatml_tools"), row).unread) == {
        "history", "mood", "chat_template_kwargs.tone"
    }  # fmt: skip
    plain = tokenizer_of("chatml")
    plain.chat_template = None
    assert set(ask(plain, row).unread) == unread
    assert ask(tokenizer_of("chatml"), Conversation((ASK,))).unread == ()
