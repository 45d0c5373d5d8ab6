"""`data.chat_template` and `data.template_variables`: what can be judged without a model.

A template that stands in a file becomes its text when the config is read, so that the config.yaml
of a run has the text itself: it resumes from anywhere, whatever became of the file.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loractl.text import closest, found, listed

KEY, VARIABLES = "data.chat_template", "data.template_variables"
BUILT_IN = ("chatml", "chatml-tools", "llama3", "mistral", "gemma", "phi3", "alpaca", "vicuna")
"""The templates of `data/templates`."""
GIVEN = frozenset({
    "messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now",
    "bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token",
    "additional_special_tokens", "date_parts",
})  # fmt: skip
"""What every program hands to a template, so that a default for it would never be read."""
LARGEST = 1 << 16  # bytes; the longest published templates have 25,000, and a config 256 KiB


def is_text(setting: str) -> bool:
    """Whether a setting is a template itself rather than the name of one."""
    return "{{" in setting or "{%" in setting


def text_of(setting: str) -> str:
    """The text of the file that a setting names; a text or a built-in name as it is.

    Raises ValueError, in words, for a file that is no text or too long; OSError.
    """
    if is_text(setting) or setting in BUILT_IN:
        return setting
    content = Path(setting).expanduser().read_bytes()
    if len(content) > LARGEST:
        raise ValueError(f"{setting} has more than 64 KiB, expected a chat template")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{setting}:{line}: not UTF-8; save the file as UTF-8") from None
    if not is_text(text):
        raise ValueError(f"{setting} has neither {{{{ nor {{%, expected a Jinja template")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def problems(
    setting: str | None, variables: Mapping[str, Any], folder: Path, *, paths_exist: bool = True
) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for everything that is wrong with the two; `folder` is the config's."""
    if setting is not None and (paths_exist or is_text(setting)):
        complaint = _complain_of_template(setting, folder)
        if complaint:
            yield KEY, complaint
    for name, value in variables.items():
        complaint = _complain_of_name(name) or _complain_of_value(value)
        if complaint:
            yield f"{VARIABLES}.{name}", complaint


def _complain_of_template(setting: str, folder: Path) -> str | None:
    try:
        text = text_of(setting)
    except FileNotFoundError:
        return _word_missing(setting, folder)
    except OSError as error:
        return f"{setting} cannot be read: {error.strerror}"
    except ValueError as error:
        return str(error)
    if text in BUILT_IN:
        return None
    if "\0" in text:
        return "found a NUL character, expected a Jinja template"
    from loractl.config.jinja_text import syntax_error  # jinja2 is needed only here

    if wrong := syntax_error(text):
        line, what = wrong
        where = f"line {line} of the text" if text == setting else f"{setting}:{line}"
        return f"{where}: {what}; correct the template"
    return None


def _word_missing(setting: str, folder: Path) -> str:
    path = Path(os.path.expanduser(setting))
    beside = folder / path
    if beside.is_file():
        return (
            f"{setting} does not exist in the working directory, but {beside} does, next to the"
            " config; use that path or run from there"
        )
    near = closest(path.stem.lower().replace("_", "-"), BUILT_IN, 0.5)
    if not near:
        near = next((name for name in BUILT_IN if name in path.stem.lower()), None)
    hint = f"; did you mean {near}?" if near else ""
    names = f"a built-in template ({', '.join(BUILT_IN)})"
    if len(path.parts) > 1 or path.suffix:
        if path.parent.is_dir() and (file := closest(path.name, os.listdir(path.parent), 0.8)):
            hint = f"; did you mean {path.parent / file}?"
        resolved = "" if path.is_absolute() else f" (resolved to {Path(os.path.abspath(path))})"
        return f"{setting} does not exist{resolved}; expected a Jinja file or {names}{hint}"
    return f"found {found(setting)}, expected {names}, a Jinja file, or the text of one{hint}"


def _complain_of_name(name: str) -> str | None:
    if not name.isidentifier():
        return f"{found(name)} is not a name that a template can read; use letters, digits and _"
    if name in GIVEN:
        return f"{name} is handed to every template, so it cannot be set here; remove it"
    return None


def _complain_of_value(value: Any) -> str | None:
    match value:
        case float() if not math.isfinite(value):
            return f"found {found(value)}, expected a finite number"
        case list():
            return next(filter(None, map(_complain_of_value, value)), None)
        case dict():
            keys = [key for key in value if not isinstance(key, str)]
            if keys:
                return f"found {found(keys[0])} as a key, expected text; put it in quotes"
            return next(filter(None, map(_complain_of_value, value.values())), None)
    return None


def unread(name: str, reads: frozenset[str], whose: str) -> str:
    """The message about a variable that a template never reads."""
    if not reads:
        return f"{whose} reads no variable of its own, so it would change nothing; remove it"
    near = closest(name, sorted(reads))
    hint = f"; did you mean {near}?" if near else ""
    return f"{whose} never reads it, expected {listed(sorted(reads))}{hint}"
