"""Reasoning in answers: found in fields and between tags, kept or dropped before rendering."""

from typing import Any

import pytest

from loractl.data.parity import token_parity
from loractl.data.rendering import TemplateError
from loractl.data.template import prompt_ids, render_row, with_thoughts
from loractl.data.thoughts import has_thoughts, pieces, prepared, without_thoughts
from loractl.records import Conversation, Message
from tests.data.test_template_golden import template_tokenizer
from tests.tiny import make_tokenizer

ASK, AGAIN = Message("user", "2+2?"), Message("user", "3+3?")


def answer(text: str, **extra: Any) -> Message:
    return Message("assistant", text, extra=extra)


TAGGED = Conversation((
    ASK, answer("<think>\nadd one\n</think>\n\n4"), AGAIN, answer("<think>\nadd two\n</think>\n\n6")
))  # fmt: skip
IN_FIELD = Conversation((
    ASK, answer("4", reasoning_content="add one"), AGAIN, answer("6", reasoning_content="add two")
))  # fmt: skip
STRIPS_ALL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].strip() }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
READS_REASONING = STRIPS_ALL.replace(
    "{{ m.content", "{% if m.reasoning %}({{ m.reasoning }}){% endif %}{{ m.content"
)


QWEN = (  # reads both spellings, strips those of earlier turns, and has a switch, as Qwen3's does
    "{%- set last = namespace(question=-1) -%}"
    "{%- for m in messages if m.role == 'user' -%}{%- set last.question = loop.index0 -%}"
    "{%- endfor -%}{%- for m in messages -%}{%- set said = m.content -%}"
    "{%- if m.role == 'assistant' -%}{%- set thought = m.reasoning_content or '' -%}"
    "{%- if '</think>' in said -%}"
    "{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') -%}"
    "{%- set said = said.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "{%- if loop.last or thought and loop.index0 > 2 * last.question -%}"
    "{%- set said = '<think>\n' ~ thought ~ '\n</think>\n\n' ~ said -%}{%- endif -%}"
    "{%- endif -%}{{ '<|im_start|>' ~ m.role ~ '\n' ~ said ~ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}"
    "{{ '<think>\n\n</think>\n\n' }}{%- endif -%}{%- endif -%}"
)


def rendered(template: str, row: Conversation, setting: str = "auto") -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    (one,) = prepared(row, setting, False)
    return render_row(tokenizer, with_thoughts(tokenizer, one, setting), train_on="assistant")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("<think>a</think>b", [("", "content"), ("<think>", "tag"), ("a", "thought"),
                               ("</think>", "tag"), ("b", "content")]),
        ("a</think>b", [("a", "thought"), ("</think>", "tag"), ("b", "content")]),
        ("x [THINK]a[/THINK]", [("x ", "content"), ("[THINK]", "tag"), ("a", "thought"),
                                ("[/THINK]", "tag"), ("", "content")]),
        ("<think>a", [("<think>a", "content")]),
        ("plain", [("plain", "content")]),
    ],
)  # fmt: skip
def test_a_content_is_cut_at_the_tags_of_reasoning(text: str, kinds: list[Any]) -> None:
    assert [tuple(piece) for piece in pieces(answer(text), text)] == kinds
    assert [tuple(piece) for piece in pieces(Message("user", text), text)] == [(text, "content")]


def test_reasoning_is_taken_out_with_its_tags_and_fields() -> None:
    for row in (TAGGED, IN_FIELD):
        assert all(map(has_thoughts, row.messages[1::2]))
        assert [without_thoughts(m) for m in row.messages] == [
            ASK, answer("4"), AGAIN, answer("6")
        ]  # fmt: skip
    assert without_thoughts(answer("a</think>\n\nb")) == answer("b")


def test_the_setting_keeps_all_the_last_or_none() -> None:
    def kept(setting: str) -> list[bool]:
        (row,) = prepared(IN_FIELD, setting, False)
        return [has_thoughts(message) for message in row.messages[1::2]]

    assert kept("auto") == kept("keep") == [True, True]
    assert kept("last") == [False, True]
    assert kept("drop") == [False, False]
    steps = Conversation(
        (ASK, answer("a", thinking="x"), Message("tool", "t"), *TAGGED.messages[3:])
    )
    (row,) = prepared(steps, "last", False)
    assert row == steps, "all that follows the last question is the last turn"


def test_each_answer_is_an_example_with_what_precedes_it() -> None:
    first, second = prepared(TAGGED, "last", True)
    assert first.messages == TAGGED.messages[:2]
    assert [m.train for m in second.messages] == [True, False, True, True]
    assert [has_thoughts(m) for m in second.messages] == [False, False, False, True]
    quiet = Conversation((ASK, Message("assistant", "4", weight=0.0)))
    assert list(prepared(quiet, "auto", True)) == [quiet]


def test_earlier_reasoning_that_a_template_drops_is_counted() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = QWEN
    for row in (TAGGED, IN_FIELD):
        found = render_row(tokenizer, row, train_on="assistant")
        assert found.lost_thoughts == 1 and "add two" in found.text
        apart = [
            render_row(tokenizer, one, train_on="assistant") for one in prepared(row, "auto", True)
        ]
        assert [one.lost_thoughts for one in apart] == [0, 1]
        (span,) = apart[0].spans
        assert "add one" in apart[0].text[slice(*span)]


def test_reasoning_of_a_trained_last_answer_that_is_dropped_is_refused_with_the_way_out() -> None:
    with pytest.raises(TemplateError, match=r"messages\[3\]: .* reasoning in the content .* drop"):
        rendered(STRIPS_ALL, TAGGED)
    with pytest.raises(TemplateError, match=r"messages\[3\]: .*reasoning_content.*thoughts: keep"):
        rendered(READS_REASONING, IN_FIELD)
    found = rendered(STRIPS_ALL, TAGGED, "drop")
    assert found.lost_thoughts == 0 and "add" not in found.text
    quiet = Conversation(
        (*TAGGED.messages[:3], Message("assistant", "<think>x</think>6", weight=0.0))
    )
    assert rendered(STRIPS_ALL, quiet).lost_thoughts == 2, "context is counted"


@pytest.mark.parametrize("row", [TAGGED, IN_FIELD])
def test_keep_writes_reasoning_where_the_template_reads_it_or_is_refused(row: Conversation) -> None:
    found = rendered(READS_REASONING, row, "keep")
    assert "(add one)4" in found.text and "(add two)6" in found.text
    assert [found.text[slice(*span)] for span in found.spans] == [
        "(add one)4<|im_end|>", "(add two)6<|im_end|>"
    ]  # fmt: skip
    with pytest.raises(TemplateError, match=r"messages\[1\]: data.thoughts: keep.*split_turns"):
        rendered(template_tokenizer("qwen3").chat_template, row, "keep")
    with pytest.raises(TemplateError, match=r"messages\[1\]: data.thoughts: keep.*chat_template"):
        rendered(STRIPS_ALL, row, "keep")


@pytest.mark.parametrize("thinking", [True, False])
def test_generation_is_prompted_with_what_training_saw(thinking: bool) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = QWEN
    text = "<think>\nadd one\n</think>\n\n4" if thinking else "4"
    row = Conversation((ASK, answer(text)), variables={"enable_thinking": thinking})
    found = render_row(tokenizer, row, train_on="last")
    assert found.text[slice(*found.spans[0])] == f"{text}<|im_end|>"
    ids = tokenizer(found.text[: found.spans[0][0]], add_special_tokens=False)["input_ids"]
    assert ids == prompt_ids(tokenizer, [ASK], (), row.variables)
    assert token_parity(tokenizer, row) == []
