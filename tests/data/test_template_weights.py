"""Weights of messages become those of the tokens that are trained of them, in every selection."""

from typing import Any

import pytest

from loractl.data.encoding import Encoded, encode, encode_many
from loractl.data.template import render
from loractl.records import UNTRAINED, Conversation, Message
from tests.data.test_template_golden import CONVERSATIONS, template_tokenizer
from tests.tiny import make_tokenizer

ROW = [
    Message("system", "Be brief.", weight=0.25), Message("user", "hello", weight=3.0),
    Message("assistant", "right", weight=0.5), Message("user", "again"),
    Message("assistant", "wrong", weight=0.0), Message("user", "more"),
    Message("assistant", "The fox jumps.", weight=2.0),
]  # fmt: skip


def encoded(tokenizer: Any, messages: Any, train_on: str) -> Encoded:
    (found,) = encode_many(tokenizer, [Conversation(tuple(messages))], train_on=train_on)
    assert isinstance(found, Encoded), found
    return found


def weighed(tokenizer: Any, messages: Any, train_on: str) -> dict[float, str]:
    """The text of the tokens of each weight."""
    one = encoded(tokenizer, messages, train_on)
    ids, labels, weights = one.ids, one.labels, one.weights
    assert weights is not None and len(weights) == len(ids) == len(labels)
    for weight, label in zip(weights, labels, strict=True):
        assert (weight > 0) == (label != UNTRAINED)
    return {
        weight: tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w == weight])
        for weight in sorted(set(weights))
    }


def test_an_answer_has_its_weight_up_to_its_end_token() -> None:
    tokenizer = make_tokenizer()
    found = weighed(tokenizer, ROW, "assistant")
    assert found.keys() == {0.0, 0.5, 2.0}
    assert (found[0.5], found[2.0]) == ("right<|im_end|>", "The fox jumps.<|im_end|>")
    found = weighed(tokenizer, ROW, "last")
    assert found.keys() == {0.0, 2.0} and found[2.0] == "The fox jumps.<|im_end|>"


def test_where_all_is_trained_contents_have_their_weights_and_the_rest_weighs_1() -> None:
    tokenizer = make_tokenizer()
    found = weighed(tokenizer, ROW, "all")
    assert found.keys() == {0.0, 0.25, 0.5, 1.0, 2.0, 3.0}
    assert (found[0.25], found[3.0]) == ("Be brief.", "hello")
    assert (found[0.5], found[2.0]) == ("right<|im_end|>", "The fox jumps.<|im_end|>")
    assert "wrong<|im_end|>" in found[0.0]
    assert "again<|im_end|>" in found[1.0] and "<|im_start|>assistant" in found[1.0]


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
@pytest.mark.parametrize(
    "name", ["chatml", "gemma", "llama2", "llama3", "mistral_v1", "phi3", "qwen3"]
)
def test_weights_change_neither_ids_nor_labels_and_follow_the_spans(
    name: str, train_on: str
) -> None:
    tokenizer = template_tokenizer(name)
    plain = CONVERSATIONS["plain"]
    row = [
        Message(m.role, m.content, weight=0.5 + n if m.role == "assistant" else 1.0)
        for n, m in enumerate(plain)
    ]
    expected = encode(tokenizer, plain, train_on=train_on)
    found = encoded(tokenizer, row, train_on)
    assert (found.ids, found.labels) == expected and found.weights is not None
    rendered = render(tokenizer, row, train_on=train_on)
    of_answers = {m.weight for m in (row if train_on != "last" else row[-1:]) if m.weight != 1}
    assert {weight for *_, weight in rendered.weights} == of_answers
    assert set(found.weights) - {0.0, 1.0} == of_answers
    for start, end, weight in rendered.weights:
        (said,) = [m.content.strip() for m in row if m.weight == weight]
        assert said in rendered.text[start:end]
    doubled = [Message(m.role, m.content, weight=2.0) for m in plain]
    assert encoded(tokenizer, doubled, train_on).labels == expected[1]


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
def test_rows_in_which_every_message_weighs_1_have_no_weights(train_on: str) -> None:
    row = [Message(m.role, m.content) for m in ROW]
    assert encoded(make_tokenizer(), row, train_on).weights is None


def test_without_a_template_prompt_and_answer_have_theirs() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    row = [Message("user", "hello", weight=3.0), Message("assistant", " again", weight=0.5)]
    assert weighed(tokenizer, row, "assistant") == {0.0: "hello", 0.5: " again<|im_end|>"}
    found = weighed(tokenizer, row, "all")
    assert found[0.5] == " again<|im_end|>"
    assert "hello".endswith(found[3.0]) and found[3.0], "the first token of all is not predicted"
    silent = [Message("user", "hello", weight=0.0), Message("assistant", " again")]
    labels = encoded(tokenizer, silent, "all").labels
    assert tokenizer.decode([one for one in labels if one != UNTRAINED]) == " again<|im_end|>"


def test_an_end_that_the_template_does_not_write_weighs_what_its_answer_does() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    row = [Message("user", "hello"), Message("assistant", "right", weight=0.5)]
    assert weighed(tokenizer, row, "assistant")[0.5] == "right<|im_end|>"
    assert weighed(tokenizer, row, "all")[0.5] == "right<|im_end|>"
