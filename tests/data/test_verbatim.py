"""What a template loses because of what is said is found in the real texts, though a mark in the
place of each part is written."""

import json

import pytest

from loractl.data import verbatim
from loractl.data.message_parts import parts_of
from loractl.data.rendering import TemplateError
from loractl.records import Message
from tests.data.test_written import ALL_CALLS, asked, call, rendered
from tests.tiny import CHATML

SPLITS = CHATML.replace("m['content']", "m['content'].split('</think>')[-1].lstrip('\\n')")
CUTS = CHATML.replace("m['content']", "m['content'][:20]")
SKIPS = CHATML.replace("for m in messages %}", "for m in messages if m.content != 'Be brief.' %}")
READS_LAST_THOUGHT = CHATML.replace(
    "m['content']",
    "(m['content'].split('</think>')[0].split('<think>')[-1] + '</think>'"
    " if '</think>' in m['content'] else '') + m['content'].split('</think>')[-1]",
)  # Qwen3
ASK = Message("user", "How do I end my thoughts?")


def test_what_is_said_before_a_delimiter_in_an_answer_is_not_lost_unnoticed() -> None:
    answer = "First write them. Then write </think> and answer."
    text = "<think>\nI explain.\n</think>\n\n" + answer
    for _ in range(2):  # once with the form unknown, once known from a row that loses nothing
        with pytest.raises(TemplateError, match=r"messages\[1\].*out 'First .* write' of the"):
            rendered(READS_LAST_THOUGHT, [ASK, Message("assistant", text)])
        plain = [ASK, Message("assistant", "<think>\nI explain.\n</think>\n\nThat is it.")]
        assert "I explain" in rendered(READS_LAST_THOUGHT, plain)
    assert answer in rendered(CHATML, [ASK, Message("assistant", text)])


def test_a_tag_within_the_reasoning_does_not_lose_its_start() -> None:
    said = Message("assistant", "<think>I use <think> to reason</think>\n\nanswer")
    with pytest.raises(TemplateError, match="'I use <think>' of the reasoning of this answer"):
        rendered(READS_LAST_THOUGHT, [ASK, said])


def test_a_delimiter_in_the_content_of_another_message_is_found_too() -> None:
    with pytest.raises(TemplateError, match=r"messages\[0\].*'Say </think>' .* this user message"):
        rendered(SPLITS, [Message("user", "Say </think> twice"), Message("assistant", "ok")])


def test_a_result_that_is_cut_and_a_text_that_is_compared_are_found() -> None:
    told = [Message("user", "x"), Message("tool", "one two three four five six")]
    with pytest.raises(TemplateError, match=r"messages\[1\].*'five six' of .* this tool message"):
        rendered(CUTS, [*told, Message("assistant", "done")])
    turns = [Message("system", "Be brief."), Message("user", "x"), Message("assistant", "y")]
    with pytest.raises(TemplateError, match=r"messages\[0\].*'Be brief\.' .* system message"):
        rendered(SKIPS, turns)


def test_a_call_that_is_left_out_for_its_name_is_found() -> None:
    skips = ALL_CALLS.replace(
        "for c in m.tool_calls", "for c in m.tool_calls if 'noop' not in c.function.name"
    )
    assert "get" in rendered(skips, asked(call("get", city="Bern")))
    with pytest.raises(TemplateError, match=r"messages\[1\]: .* call noop"):
        rendered(skips, asked(call("noop")))


@pytest.mark.parametrize(
    "escaped",
    [
        "tojson",
        "replace('\\n', ' ')",
        "trim",
        "escape",
    ],
)
def test_a_text_that_is_escaped_trimmed_or_spaced_otherwise_is_written(escaped: str) -> None:
    template = CHATML.replace("m['content']", f"m['content'] | {escaped}")
    assert template != CHATML
    said = ' a "quoted" <b> & é\'s\nsecond line '
    assert "second line" in rendered(template, [ASK, Message("assistant", said)]).replace("\n", " ")


def test_texts_are_looked_for_in_the_order_of_the_parts() -> None:
    messages = [Message("tool", "12 C"), Message("assistant", "It is 12 C.")]
    parts = list(parts_of(messages))
    assert verbatim.first_vanished(messages, parts, "12 C|It is 12 C.") is None
    lost = verbatim.first_vanished(messages, parts, "|It is 12 C.")
    assert lost == (parts[1], "It is 12 C.")
    assert verbatim.first_vanished(messages, parts, "|It is 12 C.", in_order=False) is None


def test_a_long_text_that_vanishes_is_shown_in_part() -> None:
    messages = [Message("user", "word " * 100)]
    lost = verbatim.first_vanished(messages, list(parts_of(messages)), "nothing")
    assert lost is not None and len(lost.text) == verbatim.MOST_SHOWN + len("...")
    assert json.dumps(lost.text).startswith('"word')
