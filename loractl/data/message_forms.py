"""The form in which a chat template reads messages: contents as text or as lists of parts, the
arguments of calls as objects or as JSON text. Found by rendering, once for each template."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loractl.data.calls import Arguments
from loractl.data.message_parts import function_of
from loractl.records import Message

Fields = Mapping[str, Any]
Render = Callable[[Sequence[Fields]], str]
Refusals = tuple[type[BaseException], ...]

KEY, VALUE = "\uf8fe", "\uf8ff"  # of an argument or of a part that no row has

SECOND = "\uf8fd"  # the text of another part

_reads_lists: dict[tuple[str, str, bool], bool] = {}
"""Whether a template reads a list of one part, or of several, in the messages of a role."""

_reads_text: dict[str, bool] = {}
"""Whether a template joins arguments to other text, as OpenAI's API has them (DeepSeek V3)."""

MOST_KNOWN = 256
"""Answers remembered; a command meets a few templates."""


def forget_() -> None:
    """Forget what rows have decided so far."""
    _reads_lists.clear()
    _reads_text.clear()


def fitting(
    messages: Sequence[Message], template: str, render: Render, refusals: Refusals
) -> list[Fields]:
    """The messages as this template reads them.

    A template decides by rendering these very messages with a mark in one content or in all calls,
    so that its rules on roles are met. Where it refuses them for another reason, the next row
    decides.
    """
    plain: list[Fields] = [_plain(message) for message in messages]
    for number, message in enumerate(messages):
        if not message.parts:
            continue
        known = (template, message.role, len(message.parts) > 1)
        if known not in _reads_lists:
            _remember(_reads_lists, known, _tries_list(plain, messages, number, render, refusals))
        if _reads_lists.get(known):
            plain[number] = {**plain[number], "content": _as_list(message.parts)}
    if any(message.tool_calls for message in messages):
        if template not in _reads_text:
            _remember(_reads_text, template, _tries_text(plain, render, refusals))
        if _reads_text.get(template):
            return [_with_arguments(message, _as_text) for message in plain]
    return plain


def _remember(answers: dict[Any, bool], key: Any, found: bool | None) -> None:
    while len(answers) >= MOST_KNOWN:
        del answers[next(iter(answers))]
    if found is not None:
        answers[key] = found


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content, **message.extra}
    if message.tool_calls:
        plain["tool_calls"] = [dict(call) for call in message.tool_calls]
    return plain


def _as_list(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _tries_list(
    plain: Sequence[Fields],
    messages: Sequence[Message],
    number: int,
    render: Render,
    refusals: Refusals,
) -> bool | None:
    """Whether the template writes the text of a part, and not the part as an object; if the message
    has several parts, also that of another one, as templates do not that read the first alone.
    None where it refuses the row in either form."""
    lists = [
        {**fields, "content": _as_list(message.parts)} if message.parts else fields
        for fields, message in zip(plain, messages, strict=True)
    ]
    texts = [KEY, SECOND] if len(messages[number].parts) > 1 else [KEY]
    marked = {**plain[number], "content": [{**part, "mark": VALUE} for part in _as_list(texts)]}
    for others in (lists, plain):
        text = _try(render, [*others[:number], marked, *others[number + 1 :]], refusals)
        if text is not None:
            return all(one in text for one in texts) and VALUE not in text
    return None if _try(render, plain, refusals) is None else False


def _tries_text(plain: Sequence[Fields], render: Render, refusals: Refusals) -> bool | None:
    """Whether arguments are read as text only: as an object the template refuses them, or writes
    them as Python does; None where it refuses the row in either form."""
    marked = [_with_arguments(message, lambda _: {KEY: VALUE}) for message in plain]
    as_object = _try(render, marked, refusals)
    if as_object is not None and str({KEY: VALUE}) not in as_object:
        return False
    as_text = _try(render, [_with_arguments(message, _as_text) for message in marked], refusals)
    if as_text is not None:
        return True
    return None if as_object is None else False


def _try(render: Render, plain: Sequence[Fields], refusals: Refusals) -> str | None:
    try:
        return render(plain)
    except refusals:
        return None


def _as_text(arguments: Any) -> str:
    """As its row had it, or as JSON."""
    if isinstance(arguments, Arguments) and arguments.text:
        return arguments.text
    return json.dumps(arguments, ensure_ascii=False)


def _with_arguments(message: Fields, change: Callable[[Any], Any]) -> Fields:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = {**function_of(call)}
        function["arguments"] = change(function["arguments"])
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls}
