"""Another tool's words for a chat template and its variables -> data.chat_template and
data.template_variables, where both write the same text."""

import json
from pathlib import PurePath
from typing import Any

from loractl.config.imports.reasons import OWN_TEMPLATE
from loractl.config.imports.values import Translated, is_off, is_on
from loractl.config.template_setting import KEY, VARIABLES, is_text

NAMES = {
    "chatml": "chatml", "llama3": "llama3", "llama-3": "llama3", "gemma": "gemma",
    "mistral_v2v3": "mistral",
}  # fmt: skip
"""Those of axolotl and unsloth. Their alpaca and vicuna add a system text of their own in one of
the two, their mistral and phi-3 have other spaces or tokens."""
LLAMAFACTORY = {
    "chatml": "chatml", "llama3": "llama3", "gemma": "gemma", "mistral": "mistral", "phi": "phi3",
}  # fmt: skip
OWN = ("tokenizer_default", "tokenizer_default_fallback_chatml", "default", "auto", "jinja")
"""The model's own; `jinja` names another key that has the text."""


def chat_template(value: Any) -> Translated:
    """A name of axolotl's or unsloth's, or the text of a template."""
    if isinstance(value, str) and is_text(value):
        return {KEY: value}
    if is_off(value) or str(value).lower() in OWN:
        return {}
    return _named(value, NAMES)


def llamafactory_template(value: Any) -> Translated:
    """LLaMA-Factory's `template`, which replaces the model's own; its `default` is another one."""
    return {} if is_off(value) else _named(value, LLAMAFACTORY)


def _named(value: Any, names: dict[str, str]) -> Translated:
    ours = names.get(str(value).lower())
    return OWN_TEMPLATE if ours is None else {KEY: ours}


def template_file(value: Any) -> Translated:
    """A Jinja file, or the text of a template; TRL also takes a tokenizer to copy one from."""
    if is_off(value):
        return {}
    if not isinstance(value, str):
        return f"{value!r} is not a path"
    if is_text(value) or PurePath(value).suffix in (".jinja", ".jinja2", ".j2", ".txt"):
        return {KEY: value}
    return f"{KEY} takes a Jinja file: name the chat_template.jinja of {value}"


def template_variables(value: Any) -> Translated:
    """A mapping, also as JSON text."""
    if is_off(value):
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return "it is not a JSON object"
    return {VARIABLES: value} if isinstance(value, dict) else "it is not a mapping"


def thinking(value: Any) -> Translated:
    """LLaMA-Factory's enable_thinking; true is what templates do on their own."""
    if is_on(value):
        return {}
    return {VARIABLES: {"enable_thinking": False}} if value is False else {}
