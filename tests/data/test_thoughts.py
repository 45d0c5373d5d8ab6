"""Reasoning in answers: found in fields and between tags, kept or dropped before rendering."""

from dataclasses import replace
from typing import Any

import pytest

from loractl.data.parity import token_parity
from loractl.data.rendering import TemplateError
from loractl.data.row_errors import RowError
from loractl.data.template import prompt_ids, render_row, with_thoughts
from loractl.data.thoughts import has_thoughts, pieces, prepared, without_thoughts
from loractl.records import Conversation, Message
from tests.data.test_template_golden import template_tokenizer
from tests.tiny import CHATML, make_tokenizer

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


def tokenizer_of(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def rendered(template: str, row: Conversation, setting: str = "auto") -> Any:
    tokenizer = tokenizer_of(template)
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
    context = (m if m.role == "user" else replace(m, weight=0.0) for m in TAGGED.messages)
    quiet = Conversation((*context, AGAIN, answer("6")))
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


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("setting", ["auto", "drop", "keep"])
def test_spans_stay_on_their_words_where_reasoning_is_dropped_or_moved(
    setting: str, parts: bool
) -> None:
    text = "<think>\nadd\n</think>\n\nThe sum is four."
    start = text.index("four")
    halves = (text[:start], text[start:]) if parts else ()
    row = Conversation((
        ASK, Message("assistant", text, parts=halves, spans=((start, start + 4),))
    ))  # fmt: skip
    found = rendered(READS_REASONING if setting == "keep" else QWEN, row, setting)
    assert [found.text[first:last] for first, last, _ in found.pieces] == ["four"]


def test_a_span_of_an_answer_whose_reasoning_moves_into_its_content_moves_with_it() -> None:
    row = Conversation((
        ASK, Message("assistant", "It is four.", extra={"thinking": "add"}, spans=((6, 10),))
    ))  # fmt: skip
    found = rendered(CHATML, row, "keep")
    assert "<think>\nadd\n</think>\n\nIt is four." in found.text
    assert [found.text[first:last] for first, last, _ in found.pieces] == ["four"]


def test_a_span_of_reasoning_alone_is_refused_where_that_is_dropped() -> None:
    spans = ((8, 11), (28, 30))
    row = Conversation(
        (ASK, Message("assistant", "<think>\nadd\n</think>\n\nIt is 4.", spans=spans))
    )
    with pytest.raises(RowError, match=r"messages\[1\].train_spans has \[8, 11\].*drop.*auto"):
        list(prepared(row, "drop", False))
    quiet = replace(row.messages[1], weight=0.0)
    (one,) = prepared(replace(row, messages=(ASK, quiet)), "drop", False)
    assert one.messages[1].content == "It is 4."
    longer = replace(row, messages=(*row.messages, AGAIN, answer("6")))
    assert list(prepared(longer, "last", False, train_on="last")), "it is context"
    with pytest.raises(RowError, match=r"messages\[1\].*thoughts: last"):
        list(prepared(longer, "last", False))
    across = replace(row.messages[1], spans=((0, 24),))
    (one,) = prepared(replace(row, messages=(ASK, across)), "drop", False)
    assert [one.messages[1].content[slice(*span)] for span in one.messages[1].spans or ()] == ["It"]


def test_reasoning_that_a_row_has_under_two_names_is_written_once() -> None:
    said = answer("4", reasoning_content="add one", reasoning="add one\n", thought="add one")
    found = rendered(READS_REASONING, Conversation((ASK, said)), "keep")
    assert found.text.count("add one") == 1
    other = answer("4", reasoning_content="add one", thought="and again")
    found = rendered(READS_REASONING, Conversation((ASK, other)), "keep")
    assert "add one\nand again" in found.text


FIRST_ALONE = Conversation((ASK, answer("4", reasoning_content="add one"), AGAIN, answer("6")))


def test_earlier_reasoning_that_is_trained_and_written_in_no_turn_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"messages\[1\]: .*reasoning_content .* drop to train"):
        rendered(CHATML, FIRST_ALONE)
    assert rendered(QWEN, FIRST_ALONE).lost_thoughts == 1, "the template drops it by design"
    context = replace(FIRST_ALONE.messages[1], weight=0.0)
    quiet = replace(FIRST_ALONE, messages=(ASK, context, AGAIN, answer("6")))
    assert rendered(CHATML, quiet).lost_thoughts == 1
    assert render_row(tokenizer_of(CHATML), FIRST_ALONE, train_on="last").lost_thoughts == 1


def test_the_way_out_for_earlier_reasoning_is_one_that_works() -> None:
    in_field = Conversation((ASK, answer("4", thought="add one"), AGAIN, answer("6")))
    with pytest.raises(TemplateError, match=r"thoughts: keep and data.split_turns: true"):
        rendered(QWEN, in_field)
    with pytest.raises(TemplateError, match=r"data.thoughts: keep to write it"):
        rendered(READS_REASONING, in_field)
    with pytest.raises(TemplateError, match=r"messages\[1\]: .*set data.thoughts: drop"):
        rendered(STRIPS_ALL, in_field)


def test_the_same_reasoning_under_a_name_that_is_not_read_is_not_lost() -> None:
    twice = answer("4", reasoning_content="add one", reasoning="add one\n")
    assert rendered(QWEN, Conversation((ASK, twice))).lost_thoughts == 0
    other = answer("4", reasoning_content="add one", reasoning="add two")
    for _ in range(2):  # also once the form is known
        with pytest.raises(TemplateError, match="leaves out reasoning of this answer"):
            rendered(QWEN, Conversation((ASK, other)))


HARMONY = (  # reads a field, in the last turn alone, as gpt-oss does
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.thinking and loop.last %}analysis: {{ m.thinking }}{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLS_FIRST = (  # reads no field, and writes calls before the content, as Gemma 4 does
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "{% endfor %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_keep_writes_tags_into_the_content_only_where_a_template_reads_no_field() -> None:
    for row in (IN_FIELD, FIRST_ALONE):
        with pytest.raises(TemplateError, match=r"messages\[1\]: data.thoughts: keep.*split_turns"):
            rendered(HARMONY, row, "keep")
    assert (
        "analysis: add one4" in rendered(HARMONY, Conversation(IN_FIELD.messages[:2]), "keep").text
    )
    assert rendered(CHATML, IN_FIELD, "keep").text.count("<think>") == 2


def test_keep_does_not_write_reasoning_after_the_call_that_it_leads_to() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"n": 1}}}
    said = replace(answer("", thinking="add one"), tool_calls=(call,))
    with pytest.raises(TemplateError, match=r"messages\[1\]: data.thoughts: keep.*chat_template"):
        rendered(CALLS_FIRST, Conversation((ASK, said)), "keep")
    assert "<think>" in rendered(CALLS_FIRST, Conversation(IN_FIELD.messages[:2]), "keep").text
    after = CALLS_FIRST.replace("{{ m.content }}", "").replace(
        "\n{% for c", "\n{{ m.content }}{% for c"
    )
    text = rendered(after, Conversation((ASK, said)), "keep").text
    assert text.index("add one") < text.index('add {"n": 1}')
