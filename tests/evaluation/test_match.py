"""Each metric on answers that are right, wrong, and nearly right."""

import re

import pytest

from loractl.evaluation.match import answer as same_answer
from loractl.evaluation.match import contains, exact_match, json_match, matching, tool_call


def test_exact_match_leaves_out_space_around_the_text_alone() -> None:
    assert exact_match(" yes\n", "yes") == 1.0
    assert exact_match("Yes", "yes") == exact_match("y es", "yes") == exact_match("", "yes") == 0.0


def test_contains_finds_the_expected_text_anywhere() -> None:
    assert contains("The answer is 42.", "42") == 1.0
    assert contains("The answer is 4 2.", "42") == 0.0


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ('{"b": 2, "a": 1}', 1.0),
        ('{"a": 1, "b": 3}', 0.5),
        ('{"a": 1}', 0.5),
        ('{"a": 1, "b": 2, "c": 3}', 2 / 3),
        ('{"a": "1", "b": "2"}', 0.0),
        ('{"a": 1, "b": 2', 0.0),
        ("[1, 2]", 0.0),
        ("", 0.0),
    ],
)
def test_json_match_is_the_share_of_fields_that_agree(answer: str, share: float) -> None:
    assert json_match(answer, '{"a": 1, "b": 2}') == pytest.approx(share)


def test_an_answer_is_what_follows_the_reasoning() -> None:
    for text in ("<think>\n\n</think>\n\nParis.", "so\n</think>Paris.", " Paris.\n",
                 "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final"
                 "<|message|>Paris."):  # fmt: skip
        assert same_answer(text, "<think>\nFrance\n</think>\n\nParis.") == 1.0
        assert contains("It is Paris. Yes.", text) == 1.0
    assert same_answer("<think>\nParis.\n</think>\n\nRome.", "Paris.") == 0.0
    assert json_match('<think>\n\n</think>\n\n{"a": 1}', '<think>x</think>{"a":1}') == 1.0


def test_only_a_block_at_the_start_is_reasoning_not_a_tag_that_the_answer_speaks_of() -> None:
    for one, other in (
        ("Use </think> FOO", "Different </think> FOO"),
        ("<think>x</think> Use </think> FOO", "<think>y</think> Different </think> FOO"),
        ("Say <think>a</think> FOO", "Write <think>b</think> FOO"),
        ("<think> 42", "42"),
    ):
        assert same_answer(one, other) == 0.0
    for text in (
        " <think>a</think>\n<think>b</think>\nUse </think> FOO",
        "a\n</think>Use </think> FOO",
        "a</think>\n\nUse </think> FOO",
        "[THINK]a[/THINK]Use </think> FOO",
    ):
        assert same_answer(text, "<think>y</think>Use </think> FOO") == 1.0


CALLED = '<tool_call>\n{"name": "get", "arguments": {"city": "Bern", "n": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("answer", "equal"),
    [
        (CALLED, 1.0),
        ('<think>\nso\n</think>\n\n{"arguments": {"n": 1, "city": "Bern"}, "name": "get"}', 1.0),
        ('[{"name": "get", "parameters": "{\\"city\\": \\"Bern\\", \\"n\\": 1}"}]', 1.0),
        ('{"type": "function", "function": {"name": "get", "arguments": {"city": "Bern", "n": 1}}}',
         1.0),
        (CALLED + CALLED, 0.0),
        (CALLED.replace("Bern", "Rome"), 0.0),
        (CALLED.replace("get", "set"), 0.0),
        (CALLED.replace("1}", '"1"}'), 0.0),
        (CALLED[:40], 0.0),
        ("The call is get(Bern).", 0.0),
        ("", 0.0),
    ],
)  # fmt: skip
def test_calls_are_equal_by_name_and_arguments_as_json(answer: str, equal: float) -> None:
    assert tool_call(answer, CALLED) == equal


def test_calls_written_otherwise_are_equal_but_for_the_spelling_of_their_json() -> None:
    wanted = 'get[ARGS]{"city": "Bern", "n": 1}'
    assert tool_call('get[ARGS]{"n":1,"city":"Bern"}', wanted) == 1.0
    assert tool_call('set[ARGS]{"n":1,"city":"Bern"}', wanted) == 0.0
    assert tool_call("call:get{city:Bern}", " call:get{city:Bern}\n") == 1.0
    assert tool_call("call:get{city:Rome}", "call:get{city:Bern}") == 0.0


DEEPSEEK = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>%s\n```json\n%s\n```<｜tool▁call▁end｜>"
XML = "<tool_call>\n<function=%s>\n<parameter=a>\n%s\n</parameter>\n</function>\n</tool_call>"
KIMI = "<|tool_call_begin|>functions.%s:0<|tool_call_argument_begin|>%s<|tool_call_end|>"


@pytest.mark.parametrize(
    "form",
    [DEEPSEEK, XML, KIMI, "[TOOL_CALLS]%s[ARGS]%s", "<tool_call>%s <arg_value>%s</arg_value>"],
)
@pytest.mark.parametrize("value", ['{"name": "n", "arguments": {"k": 1}}', '{"name": "n"}'])
def test_an_argument_that_looks_like_a_call_is_not_the_call(form: str, value: str) -> None:
    wanted = form % ("get", value)
    assert tool_call(form % ("get", value.replace(": ", ":")), wanted) == 1.0
    assert tool_call(form % ("set", value), wanted) == 0.0
    assert tool_call(form % ("get", value.replace('"n"', '"m"')), wanted) == 0.0
    plain = '<tool_call>{"name": "n", "arguments": {"k": 1}}</tool_call>'
    assert tool_call(form % ("get", value), plain) == 0.0


def test_prose_before_a_call_may_be_another() -> None:
    for text in ("If n > 3 -> ", "Sure! ", "a < b, so: "):
        assert tool_call(text + CALLED, "Let me see. " + CALLED) == 1.0
        assert tool_call(CALLED, text + CALLED) == 1.0


def test_a_call_without_arguments_is_one_with_none() -> None:
    empty = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    for text in ('{"name": "now"}', '[{"name": "now", "parameters": null}]', empty):
        assert tool_call(text, empty) == tool_call(empty, text) == 1.0
        assert tool_call(text.replace("now", "then"), empty) == 0.0
    assert tool_call('{"name": "now", "city": "Bern"}', empty) == 0.0


GPT_OSS = '<|channel|>commentary to=functions.get <|constrain|>json<|message|>{"n": 1}<|call|>'
ANALYSIS = "<|channel|>analysis<|message|>%s<|end|><|start|>assistant"
MUSE = " to=get<|message|><n>1</n><|eot|>"
TO_SELF = " to=self<|message|>%s<|eom|><|start|>assistant"


@pytest.mark.parametrize(("call", "thought"), [(GPT_OSS, ANALYSIS), (MUSE, TO_SELF)])
def test_the_same_call_after_another_thought_is_the_same(call: str, thought: str) -> None:
    wanted = thought % "they want\none" + call
    for found in (wanted, thought % "so" + call, call):
        assert tool_call(found, wanted) == same_answer(found, wanted) == 1.0
        assert tool_call(found.replace("1", "2"), wanted) == 0.0
    assert same_answer(thought % "so" + " to=user<|message|>A.", " to=user<|message|>A.") == 1.0
    assert same_answer(thought % "A." + " to=user<|message|>B.", " to=user<|message|>A.") == 0.0


def test_true_is_not_1_but_1_is_the_number_of_1_point_0() -> None:
    wanted = '{"name": "f", "arguments": {"flag": true, "n": [1, {"m": false}]}}'
    assert tool_call(wanted, wanted) == 1.0
    assert tool_call(wanted.replace("true", "1"), wanted) == 0.0
    assert tool_call(wanted.replace("false", "0"), wanted) == 0.0
    assert tool_call(wanted.replace("[1", "[1.0"), wanted) == 1.0
    assert tool_call('f[ARGS]{"flag": 1}', 'f[ARGS]{"flag": true}') == 0.0
    assert json_match('{"flag": 1, "n": 1.0}', '{"flag": true, "n": 1}') == 0.5
    assert tool_call("[" * 900 + "]" * 900, wanted) == 0.0


def test_a_regex_is_searched_for_in_the_answer() -> None:
    assert matching(r"\d{2}")("it is 42", "") == 1.0
    assert matching(r"^\d{2}$")("it is 42", "") == 0.0
    with pytest.raises(re.error):
        matching("(")
