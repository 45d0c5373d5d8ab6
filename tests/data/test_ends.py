"""The tokens that end answers, read off what is trained."""

import copy
from typing import Any

import pytest

from loractl.data.encoding import encode
from loractl.data.ends import ends_of_template, ends_of_training, ids_of, texts_of
from loractl.records import Example, Message
from tests.tiny import CHATML, make_tokenizer

BY_ROLE = (  # GLM: the role token of the next turn ends an answer
    "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}"
    "{{ '\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LINES = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
ONE_TURN = "{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + CHATML
CALLS = CHATML.replace(  # Llama 3.1: a call ends with another token than an answer
    "'<|im_end|>\n'", "('<|eom|>' if '{' in m['content'] else '<|im_end|>')"
)


def tokenizer_of(template: str | None) -> Any:
    """A base model's: its eos is <|endoftext|>, whatever its template writes."""
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.add_tokens(["<|user|>", "<|assistant|>", "<|eom|>"], special_tokens=True)
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["<|im_end|>"]),
        (BY_ROLE, ["<|endoftext|>", "<|user|>"]),
        (ONE_TURN, ["<|im_end|>"]),
        (LINES, []),  # a line break occurs inside answers too
        ("{{ raise_exception('no') }}", []),
        (None, []),
    ],
)
def test_the_ends_of_a_template_are_the_markers_that_it_writes_after_answers(
    template: str | None, expected: list[str]
) -> None:
    tokenizer = tokenizer_of(template)
    found = ends_of_template(tokenizer)
    assert texts_of(tokenizer, found) == expected
    assert ids_of(tokenizer, [*expected, "of another tokenizer"]) == found


def examples_of(tokenizer: Any, *answers: str, train_on: str = "assistant") -> list[Example]:
    rows = [[Message("user", "1"), Message("assistant", answer)] for answer in answers]
    return [Example(*encode(tokenizer, row, train_on=train_on), line=1) for row in rows]


def test_ends_that_only_the_rows_show_are_found_in_them() -> None:
    tokenizer = tokenizer_of(CALLS)
    rows = examples_of(tokenizer, "2", '{"name": "f"}')
    found = ends_of_training(tokenizer, rows, max_length=99)
    assert texts_of(tokenizer, found) == ["<|eom|>", "<|im_end|>"]
    assert texts_of(tokenizer, ends_of_template(tokenizer)) == ["<|im_end|>"]


def test_a_marker_at_which_a_row_was_cut_is_no_end() -> None:
    tokenizer = tokenizer_of(CHATML)
    (row,) = examples_of(tokenizer, "a <|eom|> b")
    at = row.ids.index(tokenizer.convert_tokens_to_ids("<|eom|>")) + 1
    cut = Example(row.ids[:at], row.labels[:at], line=1)
    found = ends_of_training(tokenizer, [cut], max_length=at)
    assert texts_of(tokenizer, found) == ["<|im_end|>"]


def test_where_everything_is_trained_the_template_tells_the_end() -> None:
    tokenizer = tokenizer_of(CHATML)
    rows = examples_of(tokenizer, "2", train_on="all")
    found = ends_of_training(tokenizer, rows, max_length=99)
    assert texts_of(tokenizer, found) == ["<|im_end|>"]
