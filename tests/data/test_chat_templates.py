"""The template that settings choose: built-in ones, defaults for variables, several by name."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerFast

from loractl.config.jinja_text import syntax_error, variables_read
from loractl.config.template_setting import BUILT_IN, GIVEN
from loractl.data import chat_templates
from loractl.data.chat_templates import SettingError, apply_settings, built_in, with_defaults
from loractl.data.encoding import encode
from loractl.data.rendering import TemplateError, apply
from loractl.data.template import prompt_ids, render
from loractl.records import Message
from tests.tiny import CHATML

SYSTEM, ASKED = Message("system", "Be brief."), Message("user", "7 x 8?")
SAID, AGAIN = Message("assistant", "56."), Message("user", "9 x 9?")
TURNS = (ASKED, SAID, AGAIN, Message("assistant", "81."))
TEXTS = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n7 x 8?<|im_end|>\n"
        "<|im_start|>assistant\n56.<|im_end|>\n<|im_start|>user\n9 x 9?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n7 x 8?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n56.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n9 x 9?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "mistral": ("<s>[INST] Be brief.\n\n7 x 8?[/INST] 56.</s>[INST] 9 x 9?[/INST]", "</s>"),
    "gemma": (
        "<s><start_of_turn>user\nBe brief.\n\n7 x 8?<end_of_turn>\n<start_of_turn>model\n"
        "56.<end_of_turn>\n<start_of_turn>user\n9 x 9?<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
    ),
    "phi3": (
        "<|system|>\nBe brief.<|end|>\n<|user|>\n7 x 8?<|end|>\n<|assistant|>\n56.<|end|>\n"
        "<|user|>\n9 x 9?<|end|>\n<|assistant|>\n",
        "<|end|>",
    ),
    "alpaca": (
        "<s>Be brief.\n\n### Instruction:\n7 x 8?\n\n### Response:\n56.</s>\n\n"
        "### Instruction:\n9 x 9?\n\n### Response:\n",
        "</s>",
    ),
    "vicuna": ("<s>Be brief. USER: 7 x 8? ASSISTANT: 56.</s>USER: 9 x 9? ASSISTANT:", "</s>"),
}
TEXTS["chatml-tools"] = TEXTS["chatml"]


def speaker(template: Any, known: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer with this template, and the tokens of Llama 2 around a text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=known.backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
    )


def call(n: int, arguments: Any = None) -> dict[str, Any]:
    given = {"n": n} if arguments is None else arguments
    return {"type": "function", "function": {"name": "get", "arguments": given}}


def test_each_built_in_template_is_a_file_and_the_other_way_round() -> None:
    folder = Path(chat_templates.__file__).parent / "templates"
    assert {path.name for path in folder.iterdir()} == {f"{name}.jinja" for name in BUILT_IN}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_template_reads_nothing_that_other_programs_lack(name: str) -> None:
    text = built_in(name)
    assert syntax_error(text) is None
    assert variables_read(text) <= {"messages", "tools", "add_generation_prompt"} | GIVEN
    assert "strftime_now" not in text and "generation %}" not in text


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_template_writes_what_its_models_were_trained_on(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    own = speaker(built_in(name), tokenizer)
    assert apply(own, (SYSTEM, ASKED, SAID, AGAIN), prompt=True) == TEXTS[name][0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_answer_is_trained_to_its_end_and_prompted_alike(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    own = speaker(built_in(name), tokenizer)
    row = render(own, (SYSTEM, *TURNS), train_on="assistant")
    end = TEXTS[name][1]
    assert [row.text[a:b].strip() for a, b in row.spans] == [f"56.{end}", f"81.{end}"]
    start = row.spans[1][0]
    assert row.text[:start] == apply(own, (SYSTEM, *TURNS[:3]), prompt=True)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize(
    "messages",
    [
        [Message("narrator", "x"), ASKED, SAID],
        [ASKED, Message("assistant", "", tool_calls=(call(1),)), Message("tool", "1"), SAID],
        [ASKED, Message("assistant", "x", tool_calls=(call(1),))],
    ],
    ids=["role", "tool", "calls"],
)
def test_what_a_template_cannot_hold_is_refused_in_words(
    name: str, messages: list[Message], tokenizer: PreTrainedTokenizerFast
) -> None:
    own = speaker(built_in(name), tokenizer)
    if name == "chatml-tools" and messages[0].role != "narrator":
        assert '"name": "get"' in apply(own, messages)
        return
    with pytest.raises(TemplateError, match=f"the template {name} (has no role|writes no tool)"):
        apply(own, messages)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "chatml-tools"])
def test_tools_are_refused_where_they_would_be_left_out(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    own = speaker(built_in(name), tokenizer)
    with pytest.raises(TemplateError, match=f"{name} writes no tools; chatml-tools does"):
        apply(own, (ASKED, SAID), tools=[{"type": "function", "function": {"name": "get"}}])


@pytest.mark.parametrize("name", ["mistral", "gemma"])
@pytest.mark.parametrize(
    "messages", [(SAID,), (ASKED, AGAIN), (ASKED, SYSTEM), (ASKED, SAID, SAID)]
)
def test_turns_that_do_not_alternate_are_refused_where_the_models_know_none(
    name: str, messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(TemplateError, match="in turns|one place for system text"):
        apply(speaker(built_in(name), tokenizer), messages)


def test_chatml_tools_writes_schemas_calls_results_thoughts_and_parts(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    schema = {"type": "function", "function": {"name": "get", "description": "für n"}}
    own = speaker(built_in("chatml-tools"), tokenizer)
    messages = (
        SYSTEM,
        ASKED,
        Message("assistant", "", tool_calls=(call(1), call(2)), extra={"reasoning_content": "hm"}),
        Message("tool", "one"),
        Message("tool", "two"),
        Message("assistant", "Done.", extra={"reasoning_content": "so"}),
        AGAIN,
        Message("assistant", "Now.", tool_calls=(call(3, '{"n": 3}'),)),
    )
    text = apply(own, messages, tools=[schema, schema])
    line = '{"type": "function", "function": {"name": "get", "description": "für n"}}'
    assert text.startswith("<|im_start|>system\nBe brief.\n\n")
    assert f"<tools>\n{line}\n{line}\n</tools>" in text
    assert text.endswith(
        "<|im_start|>user\n7 x 8?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\n"
        '<tool_call>\n{"name": "get", "arguments": {"n": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get", "arguments": {"n": 2}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\none\n</tool_response>\n"
        "<tool_response>\ntwo\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\nso\n</think>\n\nDone.<|im_end|>\n"
        "<|im_start|>user\n9 x 9?<|im_end|>\n"
        "<|im_start|>assistant\nNow.\n"
        '<tool_call>\n{"name": "get", "arguments": {"n": 3}}\n</tool_call><|im_end|>\n'
    )
    parts = [{"type": "text", "text": "7 x "}, {"type": "text", "text": "8?"}]
    as_parts = [{"role": "user", "content": parts}]
    as_text = [{"role": "user", "content": "7 x 8?"}]
    assert own.apply_chat_template(as_parts, tokenize=False) == own.apply_chat_template(
        as_text, tokenize=False
    )


STARTS = ("", "\n", "\n\n", "  ", "\n  ", " \n ", "x", "x\n")
TAGS = (
    "{% if e %}A{% endif %}", "{%- if e %}A{% endif %}", "{%+ if e %}A{% endif %}", "{# c #}B",
    "{#- c #}B", "{{ e }}", "{{- e }}", "text", "{% raw %}{{x}}{% endraw %}",
    "\n{% if e %}\nC\n{% endif %}\n",
)  # fmt: skip
VALUES = (True, None, "q\"'%}{{\n\\ü", [1, {"a": None}], -1.5)


@pytest.mark.parametrize(("trim", "lstrip"), [*itertools.product((True, False), repeat=2)])
def test_defaults_add_no_character_however_a_template_begins_and_whitespace_is_handled(
    trim: bool, lstrip: bool
) -> None:
    jinja = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=lstrip)
    for start, one, two in itertools.product(
        STARTS, TAGS, ("", "{{ e }}", "\n{% if e %}B{% endif %}")
    ):
        text = start + one + two
        plain = jinja.from_string(text)
        baked = jinja.from_string(with_defaults(text, {"e": True, "other": 1}))
        assert baked.render() == plain.render(e=True), text
        assert baked.render(e="given") == plain.render(e="given"), text


@pytest.mark.parametrize("value", VALUES)
def test_a_macro_reads_the_default_too(value: Any) -> None:
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = "{% macro f() %}{{ e | string }}{% endmacro %}{{ f() }}"
    assert jinja.from_string(with_defaults(text, {"e": value})).render() == str(value)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", " ", "\n ", " \n"])
def test_templates_by_name_become_one_text_that_renders_as_each(end: str) -> None:
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    for start, tag in itertools.product(STARTS, TAGS):
        plain, tools = f"{start}{tag}1{end}", f"{end}2{start}{tag}"
        text = chat_templates.chosen(None, {}, {"default": plain, "tool_use": tools})
        whole = jinja.from_string(text)
        assert whole.render(e=1) == jinja.from_string(plain).render(e=1), text
        assert whole.render(e=1, tools=[1]) == jinja.from_string(tools).render(e=1), text


THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}"
    "{% endif %}{% endif %}"
)


def test_a_models_own_templates_take_variables_and_the_tokenizer_is_left_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    both = {"default": THINKING, "tool_use": "TOOLS " + THINKING}
    for own in (THINKING, both):
        known = speaker(own, tokenizer)
        other = apply_settings(known, None, {"enable_thinking": False})
        assert known.chat_template == own and isinstance(other.chat_template, str)
        assert apply(other, [ASKED], prompt=True).endswith("assistant\n<think></think>")
        given = {"enable_thinking": True, "add_generation_prompt": True, "tokenize": False}
        row = [{"role": "user", "content": "x"}]
        assert other.apply_chat_template(row, **given).endswith("assistant\n")
    assert apply(other, [ASKED], tools=[{"name": "f"}]).startswith("TOOLS ")


def test_without_settings_nothing_changes(tokenizer: PreTrainedTokenizerFast) -> None:
    assert apply_settings(tokenizer, None, {}) is tokenizer


@pytest.mark.parametrize(
    ("setting", "own", "words"),
    [
        (None, THINKING, "the model's own chat template never reads it, expected enable_thinking;"),
        (None, CHATML, "the model's own chat template reads no variable of its own"),
        (None, None, "the model has no chat template that could read enable_thinkin; set data."),
        (None, {"rag": CHATML}, "no default chat template, only rag; set data.chat_template"),
        ("chatml", THINKING, "the template chatml reads no variable of its own"),
        ("{{ a }}{{ b }}", None, "the chat template never reads it, expected a or b"),
    ],
)
def test_a_variable_that_is_never_read_is_refused_with_those_that_are(
    setting: str | None, own: Any, words: str
) -> None:
    with pytest.raises(SettingError) as caught:
        chat_templates.chosen(setting, {"enable_thinkin": False}, own)
    assert words in str(caught.value)
    assert caught.value.key.startswith("data.template_variables")


def test_a_chosen_template_makes_several_turns_of_a_base_without_one(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    bare = speaker(None, tokenizer)
    with pytest.raises(TemplateError, match=r"set data.chat_template \(chatml, or a file\)"):
        encode(bare, TURNS, train_on="assistant")
    ids, _ = encode(apply_settings(bare, "chatml", {}), TURNS, train_on="assistant")
    prompt = prompt_ids(apply_settings(bare, "chatml", {}), TURNS[:3])
    assert ids[: len(prompt)] == prompt
