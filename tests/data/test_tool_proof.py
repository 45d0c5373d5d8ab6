"""A template that writes some tools and not others, or a part of their schemas, is found out."""

from typing import Any

import pytest

from loractl.data.chat_templates import built_in
from loractl.data.rendering import Renders, TemplateError
from loractl.data.template import render
from loractl.data.tool_proof import left_out_fields
from loractl.records import Message
from tests.tiny import CHATML, make_tokenizer

ASKED = [Message("user", "w?"), Message("assistant", "It is get and find.")]
FIRST = "{% if tools %}{{ tools[0] | tojson }}{% endif %}" + CHATML
NAMES = (
    "{% for t in tools or [] %}{{ t.function.name }}:{{ t.function.description }}"
    "{% for n, p in t.function.parameters.properties.items() %}{{ n }}={{ p.type }}{% endfor %}"
    "{% endfor %}" + CHATML
)


def tool(name: str, **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"b": {"type": "string", **more}}}
    function = {"name": name, "description": "looks it up", "parameters": parameters}
    return {"type": "function", "function": function}


def tokenizer_of(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_template_that_writes_the_first_tool_alone_is_refused() -> None:
    two = [tool("get"), tool("find")]
    for _ in range(2):  # also once the form is known
        with pytest.raises(TemplateError, match="^tools: .* leaves out the tool find"):
            render(tokenizer_of(FIRST), ASKED, train_on="assistant", tools=two)
    assert "get" in render(tokenizer_of(FIRST), ASKED, train_on="assistant", tools=two[:1]).text


def test_a_tool_that_is_left_out_for_its_name_is_refused() -> None:
    template = NAMES.replace("in tools or []", "in (tools or []) if t.function.name != 'noop'")
    known = [tool("get"), tool("find")]
    assert render(tokenizer_of(template), ASKED, train_on="assistant", tools=known).text
    with pytest.raises(TemplateError, match="the tool noop"):
        render(tokenizer_of(template), ASKED, train_on="assistant", tools=[*known, tool("noop")])


def test_a_template_that_writes_no_tools_at_all_is_not_refused_here() -> None:
    two = [tool("get"), tool("find")]
    assert render(tokenizer_of(CHATML), ASKED, train_on="assistant", tools=two).text


def test_the_fields_of_schemas_that_are_left_out_are_named() -> None:
    given = [tool("get", pattern="x", anyOf=[{"type": "string", "minimum": 1}], default=3)]
    found = [f.name for f in left_out_fields(Renders(tokenizer_of(NAMES), ASKED, given))]
    assert found == ["pattern", "anyOf", "default"]
    whole = Renders(tokenizer_of(built_in("chatml-tools")), ASKED, given)
    assert list(left_out_fields(whole)) == []
    flat = [function for one in given if (function := one["function"])]
    assert list(left_out_fields(Renders(tokenizer_of(FIRST), ASKED, flat))) == []
