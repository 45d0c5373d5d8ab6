"""Tool calls of a message, and the tools that a row declares; errors name the path in the row."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from loractl.data.row_errors import RowError, as_list, kind


class Arguments(dict[str, Any]):
    """The arguments of a call, with the JSON text they were given as: some templates read only
    that."""

    def __init__(self, values: Mapping[str, Any], text: str = "") -> None:
        super().__init__(values)
        self.text = text


def tool_calls(turn: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    """The tool calls of a message, in the order of the row; or the call in function_call, OpenAI's
    old form. Raises RowError."""
    calls, old = turn.get("tool_calls"), turn.get("function_call")
    if old is not None and calls:
        raise RowError(f"{where} has function_call and tool_calls, expected only one")
    if old is not None:
        return ({"type": "function", "function": _read_call(old, f"{where}.function_call")},)
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
    arguments, text = function.get("arguments"), ""
    if isinstance(arguments, str):
        text = arguments.strip()
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (RecursionError, ValueError):
            raise RowError(f"{inside}.arguments is not valid JSON, expected an object") from None
    elif arguments is None:
        arguments = {}  # a call without any
    elif isinstance(arguments, Mapping):
        arguments = without_nulls(arguments)
    if not isinstance(arguments, Mapping):
        raise RowError(f"{inside}.arguments is {kind(arguments)}, expected an object")
    function = {**function, "arguments": Arguments(arguments, text)}
    return {**call, "function": function} if nested is not None else function


def calls_in_text(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """The calls of sharegpt's function_call: the JSON of one, or of a list. Raises RowError."""
    found: Any = None
    if isinstance(value, str):
        with contextlib.suppress(RecursionError, ValueError):
            found = json.loads(value)
    calls = [found] if isinstance(found, Mapping) else found
    if not isinstance(calls, list) or not calls:
        raise RowError(
            f"{where} is not the JSON of a call, expected an object with name, arguments"
        )
    read = (_read_call(call, f"{where}[{i}]") for i, call in enumerate(calls))
    return tuple(
        call if "function" in call else {"type": "function", "function": call} for call in read
    )


def without_nulls(value: Any) -> Any:
    """A copy without the null fields of objects: Parquet and datasets give all objects of a column
    the same fields, and write null for those that one does not have."""
    if isinstance(value, Mapping):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


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
    read = (_read_tool(tool, f"tools[{number}]") for number, tool in enumerate(value))
    return tuple(without_nulls(tool) for tool in read)


def functions(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Read the functions of a row, OpenAI's old form of tools. Raises RowError."""
    return tuple({"type": "function", "function": one} for one in tools(value))


_OWN = {
    "messages", "conversation", "tools", "add_generation_prompt", "tokenize", "chat_template",
    "continue_final_message", "bos_token", "eos_token",
}  # fmt: skip
"""Variables of a template that are not a row's to set."""


def variables(value: Any) -> Mapping[str, Any]:
    """Read the variables that a row gives to its chat template: an object, or its JSON text.

    Raises RowError.
    """
    if isinstance(value, str) and value.strip():
        with contextlib.suppress(RecursionError, ValueError):
            value = json.loads(value)
    if value is None or value == "":
        return {}
    if not isinstance(value, Mapping):
        raise RowError(f"chat_template_kwargs is {kind(value)}, expected an object")
    if taken := sorted(_OWN & set(value)):
        raise RowError(f"chat_template_kwargs.{taken[0]} is not a row's to set; remove it")
    found: Mapping[str, Any] = without_nulls(value)
    return found


def _read_tool(tool: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(tool, Mapping):
        raise RowError(f"{where} is {kind(tool)}, expected an object that describes a function")
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        inside = f"{where}.function" if "function" in tool else where
        raise RowError(f"{inside}.name is missing, expected the name of the tool")
    return tool
