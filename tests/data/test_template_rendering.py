"""What a template is given: a fixed date, tools and calls; and what is said when it refuses."""

import copy
import datetime
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from loractl.data.encoding import encode
from loractl.data.rendering import DATE, TemplateError, apply, writes_date, writes_tools
from loractl.data.template import prompt_ids
from loractl.records import Message
from tests.data.test_template_golden import CALL, CONVERSATIONS, TOOL, template_tokenizer
from tests.tiny import CHATML, make_tokenizer

ASKED = [Message("user", "What day is it?"), Message("assistant", "Friday.")]
TOKENIZER = make_tokenizer()


def with_template(template: Any) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", ["llama3_date", "granite"])
def test_ids_are_the_same_on_any_day(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = template_tokenizer(name)
    today = encode(tokenizer, ASKED, train_on="assistant"), prompt_ids(tokenizer, ASKED[:1])

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Tomorrow":
            return cls(2099, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    plain = [{"role": m.role, "content": m.content} for m in ASKED]
    assert "2099" in tokenizer.apply_chat_template(plain, tokenize=False), "it does write a date"
    assert today == (
        encode(tokenizer, ASKED, train_on="assistant"),
        prompt_ids(tokenizer, ASKED[:1]),
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %b %Y') }}|{{ messages[0].content }}",
        "\n  {% if strftime_now is defined %}"
        "{{ 'On ' + strftime_now('%A, %-d %B %y %%') }}{% endif %}"
        "\n{{ messages[0].content }}\n",
        "{% macro day() %}{{ strftime_now('%Y-%m-%d %H:%M:%S') }}{% endmacro %}\n{{ day() }}",
        "{#- a comment -#}\n  \n{%- set d = strftime_now('%a %j %x %F %I %p %e %m') -%} {{ d }}",
    ],
)
def test_the_fixed_date_is_written_as_the_clock_would_and_changes_nothing_else(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
            return cls(DATE.year, DATE.month, DATE.day, 12)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    tokenizer = with_template(template)
    plain = [{"role": "user", "content": "x"}]
    theirs = tokenizer.apply_chat_template(plain, tokenize=False)
    assert apply(tokenizer, [Message("user", "x")]) == theirs


def test_a_template_that_writes_a_date_is_told_from_one_that_does_not() -> None:
    system = [Message("system", "S"), *ASKED]
    assert writes_date(template_tokenizer("llama3_date"), system)
    assert not writes_date(template_tokenizer("llama3"), system)
    granite = template_tokenizer("granite")  # which writes it into its default system prompt only
    assert writes_date(granite, ASKED) and not writes_date(granite, system)


def test_a_tokenizer_with_several_templates_uses_that_for_tools_where_there_are_some() -> None:
    dated = "{{ strftime_now('%Y') }}" + CHATML
    tokenizer = with_template({"default": dated, "tool_use": "{{ tools | tojson }}" + dated})
    assert apply(tokenizer, ASKED).startswith("2024<|im_start|>user")
    assert apply(tokenizer, ASKED, [{"name": "f"}]).startswith('[{"name": "f"}]2024<|im_start|>')


def test_tools_and_calls_reach_the_template_and_calls_are_trained() -> None:
    tokenizer, messages = template_tokenizer("chatml_tools"), CONVERSATIONS["tools"]
    assert writes_tools(tokenizer, messages, [TOOL])
    assert not writes_tools(template_tokenizer("chatml"), ASKED, [TOOL])
    prompt = tokenizer.decode(prompt_ids(tokenizer, messages[:2], [TOOL]))
    assert '"name": "weather"' in prompt and prompt.endswith("<|im_start|>assistant\n")
    both = Message("assistant", "I look.", tool_calls=(CALL, CALL))
    ids, labels = encode(tokenizer, [messages[1], both], train_on="assistant", tools=[TOOL])
    called = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert tokenizer.decode([t for t, label in zip(ids, labels, strict=True) if label >= 0]) == (
        f"I look.\n{called}\n{called}<|im_end|>"
    )


def test_a_message_without_calls_has_no_such_key() -> None:
    tokenizer = with_template("{% for m in messages %}{{ m.keys() | join(',') }};{% endfor %}")
    assert apply(tokenizer, [*ASKED, Message("assistant", "", tool_calls=(CALL,))]) == (
        "role,content;role,content;role,content,tool_calls;"
    )


def test_tools_that_are_none_are_not_an_empty_list() -> None:
    tokenizer = with_template("{{ tools is none }}")
    assert apply(tokenizer, ASKED) == "True"
    assert apply(tokenizer, ASKED, [TOOL]) == "False"


ONLY_USER = (
    "{% for m in messages if m.role != 'ROLE' %}{{ m.role ~ m.content ~ '<|im_end|>' }}{% endfor %}"
)


@pytest.mark.parametrize(("role", "number"), [("system", 0), ("user", 1), ("assistant", 2)])
def test_a_message_that_the_template_leaves_out_is_named(role: str, number: int) -> None:
    tokenizer = with_template(ONLY_USER.replace("ROLE", role))
    with pytest.raises(TemplateError, match=rf"messages\[{number}\]: .* of this {role} message"):
        encode(tokenizer, CONVERSATIONS["chat"], train_on="assistant")


def test_an_answer_that_the_template_repeats_is_refused() -> None:
    twice = (
        "{% for m in messages %}{{ m.content ~ m.content }}"
        "{{ '<|im_end|>' if loop.last }}{% endfor %}"
    )
    with pytest.raises(TemplateError, match=r"messages\[1\]: .* repeats the content"):
        encode(with_template(twice), [*ASKED, *ASKED], train_on="assistant")


def test_a_refusal_names_the_message_from_which_on_the_template_refuses() -> None:
    alternating = template_tokenizer("gemma")
    for at in (0, 2):
        messages = [*ASKED, *ASKED]
        messages[at] = Message("tool", "x")
        with pytest.raises(TemplateError, match=rf"^messages\[{at}\]: the chat template rejects"):
            apply(alternating, messages)
    with pytest.raises(TemplateError, match=r"^the chat template rejects the row: .*end of"):
        apply(with_template("{% if %}"), ASKED)


@pytest.mark.parametrize(
    "template",
    ["{{ 1 / 0 }}", "{{ [][3].x }}", "{{ range(9999999999) | list }}", "{{ ''.__class__.x }}"],
)
def test_whatever_a_template_stumbles_over_is_its_refusal(template: str) -> None:
    with pytest.raises(TemplateError, match=r"messages\[\d\]: the chat template rejects the row"):
        apply(with_template(template), ASKED)
