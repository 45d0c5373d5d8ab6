"""One message of a row -> a record; errors name the path inside the row. Calls are in `calls`.

Combining messages into a conversation is left to `rows`.
"""

import math
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

MARKS = {"train": True, "training": True, "trainable": True, "loss": True, "mask": False}
"""How a message says whether it is trained, in the words of loractl and other tools, and the value
that means that it is. 0 and 1 are read as false and true."""

WEIGHTS = (1e-30, 1e30)
"""The least and the greatest weight above 0: float32 holds their products with losses, and sums."""

SHOWN = 40  # characters of a wrong value in a message

SPANS = "train_spans"
"""The spans of an answer that are trained: [[start, end], ...] in characters of content."""

_READ = {
    "role", "content", "from", "value", "tool_calls", "function_call", "weight", SPANS, *MARKS,
}  # fmt: skip
"""Fields of a message that are read here; all others are passed to the chat template."""

MEDIA = ("images", "image", "videos", "video", "audios", "audio")
PICTURE = "<image>"
SOUNDS = {"audio": "sound", "video": "video"}
"""What stands between angle brackets for a file, and what the file holds. They are also tags of
HTML, so they count only at an edge of a text that does not close them."""


def message(turn: Any, where: str) -> Message:
    """Read {"role", "content"} or {"from", "value"}; `where` is its path in the row.

    `weight` says how much it counts, one of MARKS whether it is trained. A field that is null
    counts as absent: so tables and datasets pad rows. Raises RowError.
    """
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is {kind(turn)}, expected an object with role and content")
    sharegpt = "from" in turn and "role" not in turn
    role = _read_role(turn, where, "from" if sharegpt else "role")
    # Some rows mix the spellings, as {"role", "value"}: which one holds the text is still clear.
    name, other = ("value", "content") if sharegpt else ("content", "value")
    name = other if name not in turn and other in turn else name
    if sharegpt and name == "value" and turn.get(other) is not None:
        if turn.get(name) is None:
            name = other
        elif turn[other] != turn[name]:
            raise RowError(f"{where} has value and content, expected only one")
    is_call = sharegpt and turn["from"] == "function_call"
    calls = calls_in_text(turn.get(name), f"{where}.{name}") if is_call else tool_calls(turn, where)
    if calls and role != "assistant":
        field = "tool_calls" if turn.get("tool_calls") else name if is_call else "function_call"
        raise RowError(f"{where}.{field} is in a {role} message, expected assistant")
    is_empty = is_call or (calls and turn.get(name) is None)
    texts = ("",) if is_empty else _read_content(turn, where, name)
    content = "".join(texts)
    refuse_media(turn, f"{where}.")
    refuse_placeholders(content, where)
    parts = () if is_empty or isinstance(turn[name], str) else texts
    weight, spans = _read_weight(turn, where), _read_spans(turn, where, role, content)
    return Message(role, content, weight, calls, _extra_of(turn, name), parts, spans)


def _read_spans(
    turn: Mapping[str, Any], where: str, role: str, content: str
) -> tuple[tuple[int, int], ...] | None:
    """The half-open spans of content that are trained, in order."""
    value, place = turn.get(SPANS), f"{where}.{SPANS}"
    if value is None:
        return None
    if role != "assistant":
        raise RowError(f"{place} is in a {role} message, expected assistant")
    if not isinstance(value, list):
        raise RowError(f"{place} is {kind(value)}, expected a list of [start, end]")
    for number, span in enumerate(value):
        is_pair = isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span)
        if not is_pair or not 0 <= span[0] < span[1] <= len(content):
            raise RowError(
                f"{place}[{number}] is {span!r}, expected [start, end] of characters of content,"
                f" which has {len(content)}"
            )
    return tuple(sorted((start, end) for start, end in value))


def _extra_of(turn: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The fields that only a chat template may know, without null padding."""
    known = _READ if "role" not in turn else (_READ - {"value", "content"}) | {text}
    return {
        str(key): without_nulls(value)
        for key, value in turn.items()
        if key not in known and value is not None
    }


def refuse_placeholders(content: str, where: str) -> None:
    """Raise RowError for a text with a placeholder of a picture, of sound or of video."""
    if PICTURE in content:
        raise _say_placeholder(PICTURE, "picture", where)
    edges = content.strip()
    for name, what in SOUNDS.items():
        tag = f"<{name}>"
        if (edges.startswith(tag) or edges.endswith(tag)) and f"</{name}>" not in content:
            raise _say_placeholder(tag, what, where)


def _say_placeholder(tag: str, what: str, where: str) -> RowError:
    return RowError(
        f"{where}: {tag} stands for a {what}, and only text is trained; remove the row, or write"
        f" the {what}'s content as text"
    )


def refuse_media(fields: Mapping[str, Any], place: str = "") -> None:
    """Raise RowError for a row or message that comes with pictures, sound or video."""
    for name in MEDIA:
        if fields.get(name):
            raise RowError(f"{place}{name} is not empty, and only text is trained; remove the row")


def _read_role(turn: Mapping[str, Any], where: str, name: str) -> str:
    allowed = SHAREGPT_ROLES if name == "from" else ROLES
    role = turn.get(name)
    if name == "role" and role == "function":  # OpenAI's old word, beside function_call
        return "tool"
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
    cure = "; write it as JSON text, as json.dumps does" if isinstance(value, Mapping) else ""
    raise RowError(f"{where}.{name} is {what}, expected text{cure}")


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


def _read_weight(turn: Mapping[str, Any], where: str) -> float:
    """How much a message weighs in the loss, 0 if it is not trained; all that say so must agree."""
    said = {}
    for name, trains in MARKS.items():
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            is_number = isinstance(value, int | float)
            found = repr(value)[:SHOWN] if is_number else kind(value)
            raise RowError(f"{where}.{name} is {found}, expected true or false")
        said[name] = bool(value) is trains
    weight = 1.0 if turn.get("weight") is None else _weight_of(turn["weight"], f"{where}.weight")
    if turn.get("weight") is not None:
        said["weight"] = weight > 0
    if len(set(said.values())) > 1:
        given = " and ".join(f"{name} {turn[name]}" for name in said)
        raise RowError(f"{where} has {given}, expected only one")
    return weight if all(said.values()) else 0.0


def _weight_of(value: Any, where: str) -> float:
    least, greatest = WEIGHTS
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (value == 0 or least <= value <= greatest):  # false for NaN
        return float(value)
    expected = "a number of at least 0"
    if is_number and (0 < value < least or greatest < value < math.inf):
        expected = f"0 or a number from {least:g} to {greatest:g}"
    raise RowError(f"{where} is {repr(value)[:SHOWN]}, expected {expected}")
