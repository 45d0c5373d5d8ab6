"""data.chat_template, data.template_variables and a model's own template -> the one that is used.

The values of the variables are written in front of the template as defaults, so whoever reads it
later (generate, an export, llama.cpp, vLLM) renders what was trained without knowing of them, and
a caller who hands in another value still decides.
"""

import contextlib
import copy
import json
import re
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, TypeVar

from loractl.config.jinja_text import variables_read
from loractl.config.template_setting import BUILT_IN, GIVEN, KEY, VARIABLES, text_of, unread
from loractl.data.encoding import WRITES_CALLS
from loractl.data.rendering import Tokenizer
from loractl.errors import DataError

AnyTokenizer = TypeVar("AnyTokenizer", bound=Tokenizer)
Measured = TypeVar("Measured")
TOOLS = "chatml-tools"
"""The built-in template that writes tools, calls and results."""
_FIRST_TAG = re.compile(r"(\s*)\{([%#])([-+]?)")
_NOTHING = "{{ '' }}"
"""Writes nothing. After a block, Jinja removes a newline; after this it keeps what follows."""


class SettingError(ValueError):
    """Settings that do not fit the template of this model, and the key that is wrong."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def built_in(name: str) -> str:
    """The text of a template that comes with loractl."""
    return resources.files("loractl.data").joinpath(f"templates/{name}.jinja").read_text("utf-8")


def with_template(tokenizer: AnyTokenizer, chat_template: str | None) -> AnyTokenizer:
    """The same tokenizer with another chat template, or with its own if that is empty.

    The given tokenizer is left unchanged for anyone else who holds it.
    """
    if not chat_template:
        return tokenizer
    other = copy.copy(tokenizer)
    other.chat_template = chat_template
    return other


def apply_settings(
    tokenizer: AnyTokenizer, setting: str | None, variables: Mapping[str, Any]
) -> AnyTokenizer:
    """The tokenizer with the template that the settings choose; unchanged where they choose none.

    The cache of tokenized rows needs no word of this: its key has the tokenizer's template
    (`_store_key` in examples.py). Raises SettingError.
    """
    if setting is None and not variables:
        return tokenizer
    return with_template(tokenizer, chosen(setting, variables, tokenizer.chat_template))


def with_stand_in(
    tokenizer: AnyTokenizer, measure: Callable[[AnyTokenizer], Measured]
) -> tuple[Measured, str | None]:
    """Rows measured with a tokenizer and, where its template does not write their calls, or rows
    need one and it has none, the built-in template that was put in its place: ChatML where the
    tokenizer has its markers, else vicuna, which ends answers with the eos token that every
    tokenizer has; for calls the one that writes them.

    Raises what `measure` raises: DataError for rows that no such template holds either.
    """
    try:
        return measure(tokenizer), None
    except DataError as error:
        if tokenizer.chat_template and WRITES_CALLS not in str(error):
            raise
        plain = "chatml" if "<|im_end|>" in tokenizer.added_tokens_encoder else "vicuna"
        for name in (TOOLS,) if tokenizer.chat_template else (plain, TOOLS):
            with contextlib.suppress(DataError):
                return measure(apply_settings(tokenizer, name, {})), name
        raise


def chosen(setting: str | None, variables: Mapping[str, Any], own: Any) -> str:
    """The text of the template: as set, or `own` (a text, or several by name) with the variables.

    Raises SettingError for a variable that the template never reads.
    """
    if setting is not None:
        whose = f"the template {setting}" if setting in BUILT_IN else "the chat template"
        text = built_in(setting) if setting in BUILT_IN else text_of(setting)
    elif not own:
        raise SettingError(
            VARIABLES,
            f"the model has no chat template that could read {next(iter(variables))}; set {KEY}",
        )
    else:
        whose, text = "the model's own chat template", _as_one(own)
    reads = variables_read(text) - GIVEN
    for name in variables:
        if name not in reads:
            raise SettingError(f"{VARIABLES}.{name}", unread(name, reads, whose))
    return with_defaults(text, variables)


def with_defaults(template: str, variables: Mapping[str, Any]) -> str:
    """A template that renders as before, but with these values where a caller hands in none.

    transformers renders with trim_blocks and lstrip_blocks: a newline right after a block is
    removed, and so is the space before a block that begins a line. The defaults are put where
    neither falls on another part of the template than before.
    """
    if not variables:
        return template
    blocks = [
        f" set {name} = {name} if {name} is defined else {_literal(value)} %}}"
        for name, value in variables.items()
    ]
    first = _FIRST_TAG.match(template)
    if first:  # before its first block, with its sign: the space before them means the same
        space, _, sign = first.groups()
        return f"{space}{{%{sign}{'{%'.join(blocks)}{template[len(space) :]}"
    newline = _NOTHING if template[:1] in ("\n", "\r") else ""
    return f"{{%{'{%'.join(blocks)}{newline}{template}"


def _as_one(own: Any) -> str:
    """The templates of a model as one text: transformers takes `tool_use` where there are tools.

    One text, since that is what an adapter, a GGUF file and most readers hold.
    """
    if isinstance(own, str):
        return own
    plain, tools = own.get("default"), own.get("tool_use")
    if not isinstance(plain, str):
        raise SettingError(
            VARIABLES, f"the model has no default chat template, only {', '.join(own)}; set {KEY}"
        )
    if not isinstance(tools, str):
        return plain
    return f"{{% if tools %}}{_inside(tools)}{{% else %}}{_inside(plain)}{{% endif %}}"


def _inside(template: str) -> str:
    """A whole template as the body of a block, where it renders as it does alone."""
    body = re.sub(r"\A[^\S\n]+(?=\{[%#](?!\+))", "", template)  # as at the start of a line
    return f"{_NOTHING}{body.removesuffix(chr(10))}{_NOTHING}"


def _literal(value: Any) -> str:
    """A JSON-like value as Jinja writes it."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case list():
            return f"[{', '.join(map(_literal, value))}]"
        case dict():
            pairs = (f"{_literal(key)}: {_literal(one)}" for key, one in value.items())
            return f"{{{', '.join(pairs)}}}"
    return json.dumps(value, ensure_ascii=False)
