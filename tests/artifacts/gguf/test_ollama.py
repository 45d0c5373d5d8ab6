"""Ollama's Go templates against the chat templates they stand for, by a small Go interpreter."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from loractl.artifacts.gguf import ollama
from loractl.data.chat_templates import built_in
from loractl.data.rendering import apply
from loractl.errors import ArtifactError
from loractl.records import Message
from tests.tiny import make_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are SmolLM<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set c = bos_token + c %}"
    "{% endif %}{{ c }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}{% else %}"
    "{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + m['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ SPACE + m['content'] + '</s>' }}{% else %}{{ raise_exception('roles') }}{% endif %}"
    "{% endfor %}"
)
TEMPLATES = {
    "ChatML": (CHATML, False, None),
    "ChatML with a system message of its own": (SMOLLM, False, "You are SmolLM"),
    "Llama 3": (LLAMA3, True, None),
    "Gemma 2": (GEMMA2, True, None),
    "Gemma 3": (GEMMA3, True, None),
    "Phi-3": (PHI3, False, None),
    "Mistral v1": (MISTRAL.replace("SPACE", "''"), True, None),
    "Mistral v2": (MISTRAL.replace("SPACE", "' '"), True, None),
    "Mistral v3": (
        MISTRAL.replace("SPACE", "' '").replace("' [/INST]'", "'[/INST]'"), True, None
    ),
}  # fmt: skip
CONVERSATIONS = [
    [Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "A\nB {{ x }}")],
    [Message("system", "Be brief."), Message("user", "One"), Message("assistant", "Two"),
     Message("user", "Three"), Message("assistant", "Four"), Message("user", "Five")],
]  # fmt: skip


def go(template: str, messages: Sequence[Message], system: str) -> str:
    """Run the part of Go's text/template that we write: range, if, else if, and, eq, fields."""
    tokens = re.split(r"(\{\{.*?\}\})", template)
    text, end = _block(tokens, 0, {"$": messages, "system": system})
    assert end == len(tokens)
    return text


def _block(tokens: list[str], at: int, scope: Mapping[str, Any]) -> tuple[str, int]:
    text = ""
    while at < len(tokens):
        token = tokens[at]
        if not token.startswith("{{"):
            text, at = text + token, at + 1
            continue
        action = token[2:-2].strip()
        if action == "end" or action.startswith("else"):
            return text, at
        if action.startswith("range"):
            body, at = "", at + 1
            for i, message in enumerate(scope["$"]):
                part, after = _block(tokens, at, {**scope, "i": i, ".": message})
                body += part
            text, at = text + body, after + 1
        elif action.startswith("if"):
            done = False
            while tokens[at] != "{{ end }}":
                condition = tokens[at][2:-2].strip().removeprefix("else").strip()[3:]
                part, at = _block(tokens, at + 1, scope)
                if not done and _true(condition, scope):
                    text, done = text + part, True
            at += 1
        else:
            text, at = text + str(_value(action, scope)), at + 1
    return text, at


def _true(condition: str, scope: Mapping[str, Any]) -> bool:
    if match := re.fullmatch(r"and \((.*)\) (\S+)", condition):
        return _true(match[1], scope) and bool(_value(match[2], scope))
    match = re.fullmatch(r"eq (\S+) (\S+)", condition)
    assert match, condition
    return bool(_value(match[1], scope) == _value(match[2], scope))


def _value(word: str, scope: Mapping[str, Any]) -> Any:
    named = {"$i": "i", "$.System": "system"}
    if word in named:
        return scope[named[word]]
    if word in (".Role", ".Content"):
        return getattr(scope["."], word[1:].lower())
    return int(word) if word.isdigit() else word.strip('"')


@pytest.fixture
def templated() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_go_template_renders_what_the_chat_template_does(
    name: str, templated: PreTrainedTokenizerFast
) -> None:
    templated.chat_template, adds_bos, system = TEMPLATES[name]
    found = ollama.find("here", templated, adds_bos=adds_bos)
    assert found.family.name in name or name.startswith(found.family.name)
    assert found.system == system
    for messages in CONVERSATIONS:
        own = messages[0].role == "system"
        if own and ("Gemma 2" in name or "Mistral" in name):
            continue
        expected = apply(templated, messages, prompt=True)
        assert expected.startswith("<|endoftext|>") == adds_bos
        given = messages if own or system is None else [Message("system", system), *messages]
        said = given[0].content if given[0].role == "system" else ""
        assert go(found.family.go(), given, said) == expected.removeprefix("<|endoftext|>")
        assert found.family.render(given) == expected.removeprefix("<|endoftext|>")


def test_another_template_is_refused_with_the_families_that_there_are(
    templated: PreTrainedTokenizerFast,
) -> None:
    templated.chat_template = CHATML.replace("assistant", "bot")
    with pytest.raises(ArtifactError, match="not match any family .* ChatML, Llama 3, Gemma"):
        ollama.find("here", templated, adds_bos=False)


def test_a_bos_token_that_ollama_would_add_twice_or_alone_is_refused(
    templated: PreTrainedTokenizerFast,
) -> None:
    templated.chat_template = CHATML
    with pytest.raises(ArtifactError, match="does not start with <.endoftext.>"):
        ollama.find("here", templated, adds_bos=True)


def test_a_modelfile_names_model_template_system_and_stop(tmp_path: Path) -> None:
    family = ollama.FAMILIES[0]
    ollama.write_modelfile(tmp_path, ollama.Found(family, "Be brief."))
    text = (tmp_path / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n")
    assert f'TEMPLATE """{family.go()}"""\n' in text
    assert text.endswith('SYSTEM """Be brief."""\nPARAMETER stop "<|im_end|>"\n')


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("chatml", "ChatML"),
        ("chatml-tools", "ChatML"),
        ("llama3", "Llama 3"),
        ("gemma", "Gemma"),
        ("phi3", "Phi-3"),
        ("mistral", "Mistral v3"),
    ],
)
def test_a_built_in_template_is_that_of_a_family(name: str, family: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    tokenizer.chat_template = built_in(name)
    adds_bos = "bos_token" in tokenizer.chat_template
    assert ollama.find("adapter", tokenizer, adds_bos=adds_bos).family.name == family
