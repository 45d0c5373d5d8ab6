"""Tool calls of a message, and the tools that a row declares; errors name the path in the row."""

import contextlib
from collections.abc import Mapping
from typing import Any

from loractl.data.json_text import NotJsonError, as_list, refuse_non_finite, value_of
from loractl.data.row_errors import RowError, kind

ARGUMENTS = ("arguments", "parameters", "input")
"""The names under which rows give the arguments of a call: OpenAI's, Llama's and Anthropic's."""

_READ = {"id", "type", "function", "name", "index", *ARGUMENTS}
"""Fields of a call that are read here or belong to its frame."""


class Arguments(dict[str, Any]):
    """The arguments of a call, with the JSON text they were given as: some templates read only
    that; and how many null ones were left out as padding."""

    def __init__(self, values: Mapping[str, Any], text: str = "", nulls: int = 0) -> None:
        super().__init__(values)
        self.text = text
        self.nulls = nulls


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
    if nested is not None and (beside := [n for n in ARGUMENTS if call.get(n) is not None]):
        raise RowError(f"{where}.{beside[0]} is beside function, expected inside it")
    name = _name_of_arguments(function, inside)
    arguments, text, nulls = function.get(name), "", 0
    if isinstance(arguments, str):
        text = arguments.strip()
        try:
            arguments = value_of(text, f"{inside}.{name}") if text else {}
        except NotJsonError:
            raise RowError(f"{inside}.{name} is not valid JSON, expected an object") from None
    elif arguments is None:
        arguments = {}  # a call without any
    elif isinstance(arguments, Mapping):
        refuse_non_finite(arguments, f"{inside}.{name}")
        arguments, nulls = without_nulls(arguments), _count_nulls(arguments)
    if not isinstance(arguments, Mapping):
        raise RowError(f"{inside}.{name} is {kind(arguments)}, expected an object")
    kept = {key: value for key, value in function.items() if key not in ARGUMENTS}
    function = {**kept, "arguments": Arguments(arguments, text, nulls)}
    return {**call, "function": function} if nested is not None else function


def _name_of_arguments(function: Mapping[str, Any], where: str) -> str:
    """The field of a call that holds its arguments."""
    given = [name for name in ARGUMENTS if function.get(name) is not None]
    if len(given) > 1:
        raise RowError(f"{where} has {given[0]} and {given[1]}, expected only one")
    return given[0] if given else ARGUMENTS[0]


def other_fields(call: Mapping[str, Any]) -> set[str]:
    """The fields of a call that hold something which only a chat template may know."""
    function = call.get("function")
    found = {str(name) for name in _filled(call)}
    if isinstance(function, Mapping):
        found |= {f"function.{name}" for name in _filled(function)}
    return found


def _filled(fields: Mapping[str, Any]) -> list[str]:
    return [n for n, v in fields.items() if n not in _READ and v not in (None, "", [], {})]


def without_field(call: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The call without one of its `other_fields`."""
    if name.startswith("function.") and isinstance(call.get("function"), Mapping):
        inner = name.removeprefix("function.")
        return {**call, "function": without_field(call["function"], inner)}
    return {key: value for key, value in call.items() if key != name}


def calls_in_text(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """The calls of sharegpt's function_call: the JSON of one, or of a list. Raises RowError."""
    found: Any = None
    if isinstance(value, str):
        with contextlib.suppress(NotJsonError):
            found = value_of(value, where)
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


def _count_nulls(value: Any) -> int:
    """How many fields `without_nulls` leaves out."""
    if isinstance(value, Mapping):
        return sum(1 if one is None else _count_nulls(one) for one in value.values())
    return sum(map(_count_nulls, value)) if isinstance(value, list) else 0


def tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Read the tools of a row: a list of JSON Schemas, or the JSON text of one. Raises RowError."""
    if isinstance(value, str):
        text = value.strip()
        value = as_list(text, "tools") if text else None
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
    "continue_final_message", "bos_token", "eos_token", "conversations",
    "return_dict", "return_tensors", "return_assistant_tokens_mask", "tokenizer_kwargs", "padding",
    "truncation", "max_length", "sanitize_control_tokens",
}  # fmt: skip
"""Variables of a template that are not a row's to set, and options of what renders it."""


def variables(value: Any) -> Mapping[str, Any]:
    """Read the variables that a row gives to its chat template: an object, or its JSON text.

    Raises RowError.
    """
    if isinstance(value, str) and value.strip():
        with contextlib.suppress(NotJsonError):
            value = value_of(value, "chat_template_kwargs")
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
