"""Masks and ids of chat templates against what was written by hand, 30 families in their manner.

tests/fixtures/templates/NAME.jinja is a template, NAME.CONVERSATION.txt what it writes for one of
the conversations below, by hand, with the trained parts between marks: ⟦ ⟧. golden.json holds the
token ids of that text and which of them are trained; freeze.py beside them made it from the texts
alone, by the offsets of the tokenizer and with nothing of loractl.
"""

import copy
import json

import pytest
from transformers import PreTrainedTokenizerFast

from loractl.data.encoding import encode
from loractl.data.rendering import TemplateError
from loractl.data.template import render
from loractl.records import UNTRAINED, Message
from tests.fixtures.templates.freeze import EXTRA_TOKENS, FIXTURES, GOLDEN, plain_and_spans
from tests.tiny import make_tokenizer

SYSTEM = Message("system", "Be brief.")
PLAIN = [
    Message("user", "What is 2 plus 2?"),
    Message("assistant", "It is 4."),
    Message("user", " And 東京? "),
    Message("assistant", "A city: naïve café 🗼"),
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CONVERSATIONS = {
    "chat": [SYSTEM, *PLAIN],
    "plain": PLAIN,
    "one": [SYSTEM, *PLAIN[:2]],
    "thoughts": [
        Message("user", "2+2?"),
        Message("assistant", "<think>\nTwo and two.\n</think>\n\nIt is 4."),
        Message("user", "3+3?"),
        Message("assistant", "<think>\nThree twice.\n</think>\n\nIt is 6."),
    ],
    "tools": [
        SYSTEM,
        Message("user", "Weather in Oslo?"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", '{"degrees": 3}'),
        Message("assistant", "3 degrees."),
    ],
}
CASES = sorted(path.stem for path in FIXTURES.glob("*.txt"))


def template_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The test tokenizer with a template of tests/fixtures, and with its markers if it has any."""
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": EXTRA_TOKENS.get(name, [])})
    tokenizer.chat_template = (FIXTURES / f"{name}.jinja").read_text("utf-8")
    return tokenizer


@pytest.mark.parametrize("case", CASES)
def test_ids_and_mask_are_those_written_by_hand(case: str) -> None:
    name, conversation = case.split(".")
    tokenizer, messages = template_tokenizer(name), CONVERSATIONS[conversation]
    tools = (TOOL,) if conversation == "tools" else ()
    text, spans = plain_and_spans((FIXTURES / f"{case}.txt").read_text("utf-8"))
    rendered = render(tokenizer, messages, train_on="assistant", tools=tools)
    shown = "".join(f"{rendered.text[a:b]!r} " for a, b in rendered.spans)
    assert rendered.text == text
    assert rendered.spans == tuple(spans), shown
    golden = json.loads(GOLDEN.read_text("utf-8"))[case]
    ids, labels = encode(tokenizer, messages, train_on="assistant", tools=tools)
    assert ids == golden["ids"]
    trained = {n for first, last in golden["trained"] for n in range(first, last)}
    assert labels == [t if n in trained else UNTRAINED for n, t in enumerate(ids)]


def test_there_are_at_least_20_templates_and_none_is_without_its_text() -> None:
    names = {path.stem for path in FIXTURES.glob("*.jinja")}
    assert len(names) >= 20
    assert {case.split(".")[0] for case in CASES} == names
    assert set(json.loads(GOLDEN.read_text("utf-8"))) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_training_on_the_last_answer_trains_the_last_of_the_marked_parts(case: str) -> None:
    name, conversation = case.split(".")
    tools = (TOOL,) if conversation == "tools" else ()
    text, spans = plain_and_spans((FIXTURES / f"{case}.txt").read_text("utf-8"))
    rendered = render(
        template_tokenizer(name), CONVERSATIONS[conversation], train_on="last", tools=tools
    )
    assert (rendered.text, rendered.spans) == (text, tuple(spans[-1:]))


@pytest.mark.parametrize(
    ("name", "conversation", "why"),
    [
        ("gemma", "chat", r"messages\[0\]: the chat template rejects the row: no system role"),
        ("mistral_v1", "chat", r"messages\[0\]: .* user and assistant must take turns"),
        ("deepseek_r1", "tools", r"messages\[2\]: the chat template leaves out the tool_calls"),
        ("deepseek_r1", "thoughts", r"messages\[3\]: .* leaves out the reasoning in the content"),
        ("mistral_v3", "chat", r"messages\[0\]: .* leaves out the content of this system message"),
        ("mistral_v3", "tools", r"messages\[3\]: .* only user and assistant may speak"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_its_message(
    name: str, conversation: str, why: str
) -> None:
    with pytest.raises(TemplateError, match=why):
        encode(template_tokenizer(name), CONVERSATIONS[conversation], train_on="assistant")
