"""Contents and arguments are given in the form that a template reads."""

from typing import Any

import pytest

from loractl.data import rows
from loractl.data.rendering import TemplateError
from loractl.data.template import render_row
from tests.tiny import CHATML, make_tokenizer

CALL = "m.tool_calls[0].function"
CALLS = CHATML.replace(
    "m['content']",
    f"m['content'] ~ ({CALL}.name ~ ' ' ~ {CALL}.arguments if m.tool_calls else '')",
)
AS_OBJECT = CALLS.replace(f"{CALL}.arguments", f"({CALL}.arguments | tojson)")
LISTS = CHATML.replace("m['content']", "m['content'] | map(attribute='text') | join('+')")
BOTH = CHATML.replace(
    "m['content']",
    "(m['content'] if m['content'] is string else"
    " m['content'] | map(attribute='text') | join('+'))",
)


def text_of(template: str, *messages: dict[str, Any]) -> str:
    tokenizer = make_tokenizer()
    assert template != CHATML
    tokenizer.chat_template = template
    row = rows.read({"messages": list(messages)}, "messages")
    return render_row(tokenizer, row, train_on="all").text


def asked(content: Any = "x") -> dict[str, Any]:
    return {"role": "user", "content": content}


def calling(arguments: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def test_arguments_are_objects_or_the_text_of_the_row_where_a_template_prints_them() -> None:
    assert 'f {"city":"Bern"}<|im_end|>' in text_of(CALLS, asked(), calling('{"city":"Bern"}'))
    assert 'f {"city": "Bern"}<|im_end|>' in text_of(CALLS, asked(), calling({"city": "Bern"}))
    assert "f {}<|im_end|>" in text_of(CALLS, asked(), calling(None))
    spaced = text_of(AS_OBJECT, asked(), calling('{"city":"Bern"}'))
    assert 'f {"city": "Bern"}<|im_end|>' in spaced


def test_parts_are_a_list_where_a_template_reads_lists_and_joined_where_it_does_not() -> None:
    answer = {"role": "assistant", "content": parts("y ", "z")}
    for template in (LISTS, BOTH):
        assert "a +b<|im_end|>" in text_of(template, asked(parts("a ", "b")), answer)
    ours = CHATML + "{# joined #}"
    assert "a b<|im_end|>" in text_of(ours, asked(parts("a ", "b")), answer)
    dumps = CHATML.replace("m['content']", "(m['content'] | string)")
    assert "user\na b<|im_end|>" in text_of(dumps, asked(parts("a ", "b")), answer)


def test_parts_are_joined_where_a_template_reads_the_first_alone() -> None:
    first = CHATML.replace(  # Gemma 3 does so with a system message
        "m['content']", "(m['content'] if m['content'] is string else m['content'][0].text)"
    )
    answer = {"role": "assistant", "content": "y"}
    assert "user\na b<|im_end|>" in text_of(first, asked(parts("a ", "b")), answer)
    only = first.replace("m['content'] if m['content'] is string", "'none' if m.content is string")
    assert "user\na<|im_end|>" in text_of(
        only, asked(parts("a")), {**answer, "content": parts("y")}
    )


def test_a_text_is_no_list() -> None:
    answer = {"role": "assistant", "content": "y"}
    assert "user\nab<|im_end|>" in text_of(BOTH, asked("ab"), answer)
    with pytest.raises(TemplateError, match="content of this user message|rejects the row"):
        text_of(LISTS, asked("ab"), answer)
