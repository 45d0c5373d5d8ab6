"""Spans of one answer that are trained: what is listed is, and nothing else."""

from typing import Any

import pytest

from loractl.data import turns
from loractl.data.encoding import Encoded, encode_many
from loractl.data.row_errors import RowError
from loractl.records import UNTRAINED, Conversation, Message
from tests.data.test_template_golden import template_tokenizer

TEXT = "The fox jumps over naïve 🗼 dogs."


def trained(
    template: str | None,
    text: str,
    *spans: tuple[int, int],
    train_on: str = "assistant",
    **more: Any,
) -> list[str]:
    """The stretches of tokens that are trained, as text."""
    tokenizer = template_tokenizer(template or "chatml")
    if template is None:
        tokenizer.chat_template = None
    answer = Message("assistant", text, spans=spans, **more)
    (found,) = encode_many(
        tokenizer, [Conversation((Message("user", "Go on."), answer))], train_on=train_on
    )
    assert isinstance(found, Encoded), found
    runs: list[list[int]] = [[]]
    for label in found.labels:
        if label == UNTRAINED and runs[-1]:
            runs.append([])
        elif label != UNTRAINED:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("template", ["chatml", "llama3", "gemma", "qwen3", "llama2", "phi3", None])
def test_the_words_of_a_span_are_trained_and_no_others(template: str | None) -> None:
    start = TEXT.index("jumps")
    assert trained(template, TEXT, (start, start + 5)) == [" jumps"]
    first, last = trained(template, TEXT, (0, 3), (start, start + 10))
    assert (first.strip(), last) == ("The", " jumps over")
    tower = TEXT.index("🗼")
    assert "🗼" in trained(template, TEXT, (tower, tower + 1))[0], "Unicode characters, not bytes"


@pytest.mark.parametrize("template", ["chatml", "llama3", "gemma", None])
def test_a_span_that_ends_the_content_includes_the_end_of_the_turn(template: str | None) -> None:
    end = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}.get(template or "", "<|im_end|>")
    for text in (TEXT, f"  {TEXT}"):
        at = text.index("dogs")
        assert trained(template, text, (at, len(text))) == [f" dogs.{end}"]
    (whole,) = trained(template, TEXT, (0, len(TEXT)))
    assert whole.strip() == TEXT + end


def test_where_all_is_trained_an_answer_with_spans_is_trained_there_alone() -> None:
    for template in ("chatml", None):
        prompt, words, *after = trained(template, TEXT, (4, 7), train_on="all")
        assert "o on." in prompt and "The" not in prompt
        assert words.strip() == "fox" and "".join(after).strip() == ""


def test_no_span_is_no_training_and_parts_of_a_content_are_counted_as_one_text() -> None:
    assert trained("chatml", TEXT) == []
    parts = ("The fox ", "jumps.")
    assert trained("chatml", "".join(parts), (8, 13), parts=parts) == [" jumps"]


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"role": "user"}, "train_spans is in a user message"),
        ({"train_spans": "0-1"}, "train_spans is str, expected a list"),
        ({"train_spans": [[0, 99]]}, r"train_spans[0] is [0, 99], expected [start, end]"),
        ({"train_spans": [[0, 1], [2, 2]]}, r"train_spans[1] is [2, 2]"),
        ({"train_spans": [[-1, 2]]}, r"train_spans[0] is [-1, 2]"),
        ({"train_spans": [[0, 1.5]]}, r"train_spans[0] is [0, 1.5]"),
        ({"train_spans": [[True, 2]]}, r"train_spans[0] is [True, 2]"),
    ],
)
def test_wrong_spans_are_named_by_their_path(turn: dict[str, Any], words: str) -> None:
    row = {"role": "assistant", "content": "abc", "train_spans": [[0, 1]], **turn}
    with pytest.raises(RowError) as caught:
        turns.message(row, "messages[1]")
    assert f"messages[1].{words}" in str(caught.value)


def test_spans_are_read_in_order() -> None:
    row = {"role": "assistant", "content": "abcd", "train_spans": [[2, 3], [0, 1]]}
    assert turns.message(row, "m").spans == ((0, 1), (2, 3))
