"""One message of a row, and the tools it declares -> records; errors name the path inside the row.

Combining messages into a conversation is left to `rows`.
"""

import json
from collections.abc import Mapping
from typing import Any

from loractl.records import Message
from loractl.text import closest

ROLES = ("system", "user", "assistant", "tool", "developer")

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",  # its text is the call
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
    "developer": "developer",
}

_MEANT = {**SHAREGPT_ROLES, "function": "tool", "ipython": "tool", "bot": "assistant"}

_RENDERED = ("reasoning_content", "reasoning", "thinking")
"""Message fields that some chat templates render but that are not passed to them here."""


class RowError(ValueError):
    """A row that does not match its format; the caller adds file and line."""


def kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def names(fields: Mapping[Any, Any]) -> str:
    """The first few field names of an object, each of bounded length."""
    short = [name if len(name) <= 40 else f"{name[:37]}..." for name in map(str, fields)]
    return ", ".join(short[:8]) + (", ..." if len(short) > 8 else "") or "nothing"


def message(turn: Any, where: str) -> Message:
    """Read {"role", "content"} or {"from", "value"}; `where` is its path in the row.

    "train": false or "weight": 0 leaves it untrained. Raises RowError.
    """
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is {kind(turn)}, expected an object with role and content")
    sharegpt = "from" in turn and "role" not in turn
    role = _read_role(turn, where, "from" if sharegpt else "role")
    # Some rows mix the spellings, as {"role", "value"}: which one holds the text is still clear.
    name, other = ("value", "content") if sharegpt else ("content", "value")
    name = other if name not in turn and other in turn else name
    for lost in _RENDERED:
        if turn.get(lost):
            raise RowError(
                f"{where}.{lost} is not passed to the chat template in this version; write it into"
                " content as the model writes it, or remove it"
            )
    if turn.get("function_call") is not None:
        raise RowError(f"{where}.function_call is OpenAI's old form, expected tool_calls")
    calls = _tool_calls(turn, where)
    if calls and role != "assistant":
        raise RowError(f"{where}.tool_calls is in a {role} message, expected assistant")
    content = "" if calls and turn.get(name) is None else _read_content(turn, where, name)
    return Message(role, content, _is_trained(turn, where), calls)


def _read_role(turn: Mapping[str, Any], where: str, name: str) -> str:
    allowed = SHAREGPT_ROLES if name == "from" else ROLES
    role = turn.get(name)
    if isinstance(role, str) and role in allowed:
        role = SHAREGPT_ROLES[role]
        # OpenAI's newer word for system. Templates of open models know system, and the one that
        # knows developer (gpt-oss) renders both alike.
        return "system" if role == "developer" else role
    expected = f"expected one of {', '.join(allowed)}"
    if name not in turn:
        raise RowError(f"{where}.{name} is missing, {expected}; the message has {names(turn)}")
    meant = _closest_role(role, allowed) if isinstance(role, str) else None
    found = repr(role) if isinstance(role, str) else f"{kind(role)} {role!r}"
    hint = f"; did you mean {meant}?" if meant else ""
    raise RowError(f"{where}.{name} is {found[:80]}, {expected}{hint}")


def _closest_role(role: str, allowed: Mapping[str, str] | tuple[str, ...]) -> str | None:
    word = role.strip().lower()
    return word if word in allowed else _MEANT.get(word) or closest(word, allowed)


def _read_content(turn: Mapping[str, Any], where: str, name: str) -> str:
    value = turn.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return "".join(_part_text(part, f"{where}.{name}[{i}]") for i, part in enumerate(value))
    found = kind(value) if name in turn else "missing"
    what = "an empty list" if value == [] else found
    raise RowError(f"{where}.{name} is {what}, expected text")


def _part_text(part: Any, where: str) -> str:
    """The text of {"type": "text", "text": ...}; parts are joined without a space."""
    if not isinstance(part, Mapping):
        raise RowError(f"{where} is {kind(part)}, expected an object with type and text")
    if part.get("type") != "text":
        raise RowError(f"{where}.type is {part.get('type')!r}, expected 'text', the only type read")
    if not isinstance(part.get("text"), str):
        found = kind(part["text"]) if "text" in part else "missing"
        raise RowError(f"{where}.text is {found}, expected text")
    return str(part["text"])


def _is_trained(turn: Mapping[str, Any], where: str) -> bool:
    train, weight = turn.get("train"), turn.get("weight")
    if train is not None and not isinstance(train, bool):
        raise RowError(f"{where}.train is {kind(train)}, expected true or false")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise RowError(f"{where}.weight is {weight!r}, expected 0 or 1")
    if train is not None and weight is not None and train != bool(weight):
        raise RowError(f"{where} has train {train} and weight {weight}, expected only one")
    return train is not False and weight != 0


def _tool_calls(turn: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    calls = turn.get("tool_calls")
    if calls is None:
        return ()
    if not isinstance(calls, list):
        raise RowError(f"{where}.tool_calls is {kind(calls)}, expected a list of calls")
    return tuple(_read_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls))


def _read_call(call: Any, where: str) -> Mapping[str, Any]:
    """A call as given, with its arguments parsed if they are JSON text.

    OpenAI writes arguments as JSON text; chat templates render them with tojson, which would quote
    a text again, so that the model would learn to answer with escaped quotes.
    """
    if not isinstance(call, Mapping):
        raise RowError(f"{where} is {kind(call)}, expected an object with function")
    nested = call.get("function")
    function, inside = (nested, f"{where}.function") if nested is not None else (call, where)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"{inside} has no name, expected an object with name and arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (RecursionError, ValueError):
            raise RowError(f"{inside}.arguments is not valid JSON, expected an object") from None
        function = {**function, "arguments": arguments}
    if arguments is not None and not isinstance(arguments, Mapping):
        raise RowError(f"{inside}.arguments is {kind(arguments)}, expected an object")
    return {**call, "function": function} if nested is not None else function


def tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Read the tools of a row: a list of JSON Schemas, or the JSON text of one. Raises RowError."""
    if isinstance(value, str):
        text = value.strip()
        value = as_list(text) if text else None
        if value is None and text:
            raise RowError("tools is text but not a JSON list, expected a list of tools")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowError(f"tools is {kind(value)}, expected a list of tools")
    return tuple(_read_tool(tool, f"tools[{number}]") for number, tool in enumerate(value))


def _read_tool(tool: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(tool, Mapping):
        raise RowError(f"{where} is {kind(tool)}, expected an object that describes a function")
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        inside = f"{where}.function" if "function" in tool else where
        raise RowError(f"{inside}.name is missing, expected the name of the tool")
    return tool


def as_list(text: str) -> list[Any] | None:
    """The list that a JSON text encodes, or None: tables store lists this way."""
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else None
    except (RecursionError, ValueError):
        return None
    return value if isinstance(value, list) else None
