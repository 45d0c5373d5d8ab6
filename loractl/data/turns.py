"""One message of a row -> a record; errors name the path inside the row. Calls are in `calls`.

Combining messages into a conversation is left to `rows`.
"""

from collections.abc import Mapping
from typing import Any

from loractl.data.calls import calls_in_text, tool_calls, without_nulls
from loractl.data.row_errors import RowError, kind, names
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
    "function_call": "assistant",  # its text is the JSON of the call
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
    "developer": "developer",
}

_MEANT = {**SHAREGPT_ROLES, "function": "tool", "ipython": "tool", "bot": "assistant"}

MARKS = {
    "train": True, "training": True, "trainable": True, "loss": True, "weight": True, "mask": False,
}  # fmt: skip
"""How a message says whether it is trained, in the words of loractl and other tools, and the value
that means that it is."""

_READ = {"role", "content", "from", "value", "tool_calls", "function_call", *MARKS}
"""Fields of a message that are read here; all others are passed to the chat template."""

MEDIA = ("images", "image", "videos", "video", "audios", "audio")
PICTURE = "<image>"


def message(turn: Any, where: str) -> Message:
    """Read {"role", "content"} or {"from", "value"}; `where` is its path in the row.

    One of MARKS may leave it untrained. A field that is null counts as absent: so tables and
    datasets pad rows. Raises RowError.
    """
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is {kind(turn)}, expected an object with role and content")
    sharegpt = "from" in turn and "role" not in turn
    role = _read_role(turn, where, "from" if sharegpt else "role")
    # Some rows mix the spellings, as {"role", "value"}: which one holds the text is still clear.
    name, other = ("value", "content") if sharegpt else ("content", "value")
    name = other if name not in turn and other in turn else name
    if turn.get("function_call") is not None:
        raise RowError(f"{where}.function_call is OpenAI's old form, expected tool_calls")
    is_call = sharegpt and turn["from"] == "function_call"
    calls = calls_in_text(turn.get(name), f"{where}.{name}") if is_call else tool_calls(turn, where)
    if calls and role != "assistant":
        raise RowError(f"{where}.tool_calls is in a {role} message, expected assistant")
    is_empty = is_call or (calls and turn.get(name) is None)
    texts = ("",) if is_empty else _read_content(turn, where, name)
    content = "".join(texts)
    _refuse_media(turn, content, where)
    parts = () if is_empty or isinstance(turn[name], str) else texts
    return Message(role, content, _is_trained(turn, where), calls, _extra_of(turn, name), parts)


def _extra_of(turn: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The fields that only a chat template may know, without null padding."""
    known = (_READ - {"value", "content"}) | {text}
    return {
        str(key): without_nulls(value)
        for key, value in turn.items()
        if key not in known and value is not None
    }


def _refuse_media(turn: Mapping[str, Any], content: str, where: str) -> None:
    refuse_media(turn, f"{where}.")
    if PICTURE in content:
        raise RowError(
            f"{where}: {PICTURE} stands for a picture, and only text is trained; remove the row, or"
            " write the picture's content as text"
        )


def refuse_media(fields: Mapping[str, Any], place: str = "") -> None:
    """Raise RowError for a row or message that comes with pictures, sound or video."""
    for name in MEDIA:
        if fields.get(name):
            raise RowError(f"{place}{name} is not empty, and only text is trained; remove the row")


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


def _read_content(turn: Mapping[str, Any], where: str, name: str) -> tuple[str, ...]:
    value = turn.get(name)
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        return tuple(_part_text(part, f"{where}.{name}[{i}]") for i, part in enumerate(value))
    found = kind(value) if name in turn else "missing"
    what = "an empty list" if value == [] else found
    raise RowError(f"{where}.{name} is {what}, expected text")


def _part_text(part: Any, where: str) -> str:
    """The text of {"type": "text", "text": ...}."""
    if not isinstance(part, Mapping):
        raise RowError(f"{where} is {kind(part)}, expected an object with type and text")
    if part.get("type") != "text":
        raise RowError(f"{where}.type is {part.get('type')!r}, expected 'text', the only type read")
    if not isinstance(part.get("text"), str):
        found = kind(part["text"]) if "text" in part else "missing"
        raise RowError(f"{where}.text is {found}, expected text")
    return str(part["text"])


def _is_trained(turn: Mapping[str, Any], where: str) -> bool:
    """What the marks of a message say; they must agree."""
    said = {}
    for name, trains in MARKS.items():
        value = turn.get(name)
        if value is None:
            continue
        if name != "weight" and not isinstance(value, bool):
            raise RowError(f"{where}.{name} is {kind(value)}, expected true or false")
        if name == "weight" and (isinstance(value, bool) or value not in (0, 1)):
            raise RowError(f"{where}.weight is {value!r}, expected 0 or 1")
        said[name] = bool(value) is trains
    if len(set(said.values())) > 1:
        given = " and ".join(f"{name} {turn[name]}" for name in said)
        raise RowError(f"{where} has {given}, expected only one")
    return all(said.values())
