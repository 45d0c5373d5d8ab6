"""Other tools' words for chat templates become ours where both write the same text."""

from typing import Any

import pytest

from loractl.config.imports.reasons import OWN_TEMPLATE
from tests.config.imports.test_tools import converted

TOOLS = {
    "LLaMA-Factory": "model_name_or_path: m\nfinetuning_type: lora\n",
    "axolotl": "base_model: m\nadapter: lora\n",
    "TRL": "model_name_or_path: m\ndataset_name: d\nuse_peft: true\n",
}


@pytest.mark.parametrize(
    ("tool", "line", "ours"),
    [
        ("LLaMA-Factory", "template: chatml", {"chat_template": "chatml"}),
        ("LLaMA-Factory", "template: phi", {"chat_template": "phi3"}),
        ("LLaMA-Factory", "enable_thinking: false",
         {"template_variables": {"enable_thinking": False}}),
        ("LLaMA-Factory", "enable_thinking: true", {}),
        ("axolotl", "chat_template: chatml", {"chat_template": "chatml"}),
        ("axolotl", "chat_template: mistral_v2v3", {"chat_template": "mistral"}),
        ("axolotl", "chat_template: tokenizer_default", {}),
        ("axolotl", "chat_template: jinja\nchat_template_jinja: '{{ messages }}'",
         {"chat_template": "{{ messages }}"}),
        ("axolotl", "datasets: [{path: d, type: chat_template, chat_template: llama3}]",
         {"chat_template": "llama3"}),
        ("axolotl", "chat_template_kwargs: {enable_thinking: false}",
         {"template_variables": {"enable_thinking": False}}),
        ("TRL", "chat_template_path: own/template.jinja",
         {"chat_template": "own/template.jinja"}),
        ("TRL", "chat_template_kwargs: '{\"enable_thinking\": false}'",
         {"template_variables": {"enable_thinking": False}}),
    ],
)  # fmt: skip
def test_a_template_of_the_same_text_is_set(tool: str, line: str, ours: dict[str, Any]) -> None:
    found = converted(TOOLS[tool] + line + "\n")
    keys = ("chat_template", "template_variables")
    assert {
        key: found.settings[f"data.{key}"] for key in keys if f"data.{key}" in found.settings
    } == ours
    theirs = line.partition(":")[0]
    assert theirs not in found.not_mapped


@pytest.mark.parametrize(
    ("tool", "line", "why"),
    [
        ("LLaMA-Factory", "template: qwen", OWN_TEMPLATE),
        ("LLaMA-Factory", "template: default", OWN_TEMPLATE),
        ("LLaMA-Factory", "template: alpaca", OWN_TEMPLATE),
        ("axolotl", "chat_template: phi_3", OWN_TEMPLATE),
        ("TRL", "chat_template_path: org/model", "name the chat_template.jinja of org/model"),
        ("TRL", "chat_template_kwargs: [1]", "it is not a mapping"),
    ],
)
def test_another_template_is_listed_with_the_reason(tool: str, line: str, why: str) -> None:
    found = converted(TOOLS[tool] + line + "\n")
    assert "data.chat_template" not in found.settings
    assert "data.template_variables" not in found.settings
    assert why in found.not_mapped[line.partition(":")[0]]


def test_variables_that_a_built_in_template_cannot_read_are_left_out() -> None:
    found = converted(TOOLS["LLaMA-Factory"] + "template: chatml\nenable_thinking: false\n")
    assert found.settings["data.chat_template"] == "chatml"
    assert "data.template_variables" not in found.settings
    assert found.not_mapped["enable_thinking"] == "the template chatml reads no variables"
