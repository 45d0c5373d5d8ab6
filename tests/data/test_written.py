"""What a template leaves out is found by marks, whatever else stands in the text."""

from typing import Any

import pytest

from loractl.data.encoding import encode
from loractl.data.rendering import TemplateError
from loractl.data.template import render
from loractl.records import UNTRAINED, Message
from tests.tiny import CHATML, make_tokenizer

ONE_CALL = (  # gpt-oss: a turn has one call
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }} "
    "{{ m.tool_calls[0].function.arguments | tojson }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
ALL_CALLS = ONE_CALL.replace(
    "{{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | tojson }}",
    "{% for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments | tojson }};"
    "{% endfor %}",
)
AS_TEXT = ONE_CALL.replace("m.tool_calls[0].function.arguments | tojson", "'(' + c + ')'").replace(
    "{% if m.tool_calls %}", "{% if m.tool_calls %}{% set c = m.tool_calls[0].function.arguments %}"
)  # DeepSeek V3
NO_TOOL_ROLE = CHATML.replace(
    "{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}"
)
READS_NAMES = CHATML.replace(
    "m['content']", "(m.name or '') + (m.tool_call_id or '') + m['content']"
)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def asked(*calls: dict[str, Any]) -> list[Message]:
    return [
        Message("user", "How warm is it?"),
        Message("assistant", "", tool_calls=calls),
        Message("tool", "12 C"),
        Message("assistant", "In Bern it is 12 C."),
    ]


def rendered(template: str, messages: list[Message], train_on: str = "assistant") -> str:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return render(tokenizer, messages, train_on=train_on).text


def test_every_call_must_be_written() -> None:
    two = asked(call("get", city="Bern"), call("find", city="Bern"))
    assert 'find {"city": "Bern"}' in rendered(ALL_CALLS, two)
    with pytest.raises(
        TemplateError, match=r"messages\[1\].* number 2 on \(find\); give each call"
    ):
        rendered(ONE_CALL, two)
    assert "get" in rendered(ONE_CALL, asked(call("get", city="Bern")))


def test_a_name_may_stand_in_the_id_of_its_call_alone() -> None:
    by_id = ALL_CALLS.replace("{{ c.function.name }}", "{{ c.id }}")
    assert by_id != ALL_CALLS
    calls = [{"id": f"functions.get:{n}", **call("get", city="Bern")} for n in range(2)]
    assert "functions.get:1" in rendered(by_id, asked(*calls))
    flat = [{"id": "get:0", "name": "get", "arguments": {"city": "Bern"}}]
    plain = by_id.replace("c.function.arguments", "c.arguments")
    assert "get:0" in rendered(plain, asked(*flat))
    with pytest.raises(TemplateError, match="leaves out the tool_calls"):
        rendered(by_id, asked({**calls[0], "id": "call_1"}))


def test_every_argument_must_be_written() -> None:
    first = ALL_CALLS.replace("c.function.arguments | tojson", "c.function.name")
    with pytest.raises(TemplateError, match="leaves out the tool_calls"):
        rendered(first, asked(call("get", city="Bern")))
    assert rendered(first, asked(call("get"))), "there is nothing to lose"


def test_a_result_that_is_left_out_is_found_though_the_answer_repeats_it() -> None:
    messages = [m for m in asked() if m.content]
    for _ in range(2):  # also once the form is known
        with pytest.raises(TemplateError, match=r"messages\[1\].*content of this tool message"):
            rendered(NO_TOOL_ROLE, messages)
    assert "12 C" in rendered(CHATML, messages)


def test_a_row_of_a_known_form_that_is_rendered_otherwise_is_proven_by_itself() -> None:
    reads = NO_TOOL_ROLE.replace(
        "if m.role != 'tool'", "if m.role != 'tool' or 'tools' in messages[0].content"
    )
    messages = [m for m in asked() if m.content]
    assert "12 C" in rendered(reads, [Message("user", "Use tools"), *messages[1:]])
    with pytest.raises(TemplateError, match=r"messages\[1\].*content of this tool message"):
        rendered(reads, [Message("user", "Do not"), *messages[1:]])


def test_arguments_are_text_where_the_template_joins_text() -> None:
    assert 'get ({"city": "Zürich"})' in rendered(AS_TEXT, asked(call("get", city="Zürich")))


def test_names_and_ids_reach_the_template() -> None:
    turn = Message("tool", "12 C", extra={"name": "get", "tool_call_id": "c1"})
    text = rendered(READS_NAMES, [Message("user", "x"), turn, Message("assistant", "y")])
    assert "getc112 C" in text


def test_what_is_marked_as_untrained_is_so_where_all_is_trained() -> None:
    tokenizer = make_tokenizer()
    messages = [
        Message("user", "hello"), Message("assistant", "WRONG", weight=0.0),
        Message("user", "again", weight=0.0), Message("assistant", "right"),
    ]  # fmt: skip
    ids, labels = encode(tokenizer, messages, train_on="all")
    trained = tokenizer.decode([label for label in labels if label != UNTRAINED])
    assert "WRONG" not in trained and "again" not in trained
    assert "hello" in trained and "right<|im_end|>" in trained and "user" in trained
    whole = encode(tokenizer, [Message(m.role, m.content) for m in messages], train_on="all")
    assert whole[1][1:] == whole[0][1:] and whole[0] == ids
