"""What is wrong with a command line, in our own words: what was found and what was expected.

typer decides what is wrong. Its own messages, some of which are pydantic's, are shown only for
errors that are not worded here. Its exceptions are told apart by their attributes, since their
classes are private.
"""

import re
from collections.abc import Sequence
from typing import Any

import typer

from loractl.text import listed, printable, shortened

_UNKNOWN = re.compile(r"No such command '(.*?)'\.(?: Did you mean '([^']*)')?")
_EXTRA = re.compile(r"Got unexpected extra argument(?:\(s\)|s)? \((.*)\)")


def worded(error: typer.TyperException, command: str) -> str:
    """An error in the words of a command, such as `loractl train`, with the help to read."""
    text = _problem(error, command) or error.format_message().rstrip(".")
    joint = " See" if text.endswith("?") else "; see"
    return printable(f"{text}{joint} {command} --help")


def _problem(error: Any, command: str) -> str | None:
    message, context = error.format_message(), getattr(error, "ctx", None)
    if (param := getattr(error, "param", None)) is not None:
        is_missing = hasattr(error, "param_type")
        return _missing(param) if is_missing else _wrong_number(error, param)
    if hasattr(error, "possibilities"):
        return f"{error.option_name}: unknown option{_hint(sorted(error.possibilities or []))}"
    if hasattr(error, "option_name"):
        has_none = "requires" in message
        what = "no value after it, expected one" if has_none else "a value, expected none"
        return f"{error.option_name}: found {what}"
    if match := _UNKNOWN.match(message):
        return f"{match[1]}: unknown command{_hint([match[2]] if match[2] else [])}"
    if (match := _EXTRA.match(message)) and context is not None:
        names = [_name_of(one) for one in context.command.params if _is_argument(one)]
        expected = f"nothing after {' '.join(names)}" if names else "no argument"
        return f"{command}: found {shortened(match[1])}, expected {expected}; remove it"
    if message.startswith("Missing command") and context is not None:
        return f"{command}: no command given, expected {listed(list(context.command.commands))}"
    return None


def _missing(param: Any) -> str:
    what = (param.help or "").rstrip(".")
    what = f": {what[:1].lower()}{what[1:]}" if what[1:2].islower() else f": {what}" if what else ""
    return f"{_name_of(param)}: not given, but required{what}"


def _wrong_number(error: Any, param: Any) -> str | None:
    """None for a value of another kind."""
    kind = getattr(getattr(param, "type_descriptor", None), "annotation", None)
    details: Sequence[Any] = getattr(error.__cause__, "errors", list)()
    if kind not in (int, float) or not details:
        return None
    bounds = [
        f"{word} {bound:.15g}" if isinstance(bound, float) else f"{word} {bound}"
        for word, bound in (("at least", param.min), ("at most", param.max))
        if bound is not None
    ]
    expected = "a whole number" if kind is int else "a number"
    expected += f" of {' and '.join(bounds)}" if bounds else ""
    return f"{_name_of(param)}: found {shortened(repr(details[0]['input']))}, expected {expected}"


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _name_of(param: Any) -> str:
    """--rank for an option, CONFIG for an argument."""
    return str(param.name.upper() if _is_argument(param) else param.opts[0])


def _hint(near: Sequence[str]) -> str:
    return f"; did you mean {listed(near)}?" if near else ""
