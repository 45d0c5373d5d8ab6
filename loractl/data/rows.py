"""The fields of a row -> a conversation: one function per format, detection, renamed columns.

Errors name the field, what was found and what was expected; single messages are read by `turns`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from loractl.data import calls, turns
from loractl.data.json_text import as_list
from loractl.data.row_errors import RowError as RowError
from loractl.data.row_errors import kind, names
from loractl.data.unread_fields import unread_fields
from loractl.records import Conversation, Message
from loractl.text import closest

Fields = Mapping[str, Any]


def messages(fields: Fields) -> Conversation:
    """{"messages": [{"role", "content"}, ...]}, OpenAI's form."""
    return _as_conversation(fields, _turns_of(fields, "messages"))


def sharegpt(fields: Fields) -> Conversation:
    """{"conversations": [{"from", "value"}, ...]}; role and content are read too."""
    return _as_conversation(fields, _turns_of(fields, "conversations"))


def prompt_completion(fields: Fields) -> Conversation:
    """{"prompt", "completion"}: two texts, or two lists of messages, TRL's form.

    Answers within a prompt list are not trained on: only the completion is.
    """
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        asked, answer = _text_of(fields, "prompt"), _text_of(fields, "completion")
        turns.refuse_placeholders(asked, "prompt")
        turns.refuse_placeholders(answer, "completion")
        return _as_conversation(fields, [Message("user", asked), Message("assistant", answer)])
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, list):
            found = kind(value) if name in fields else "missing"
            raise RowError(f"{name} is {found}, expected a list of messages, like the other field")
    given = [
        replace(message, weight=0.0 if message.role == "assistant" else message.weight)
        for message in _turns_of(fields, "prompt")
    ]
    return _as_conversation(fields, [*given, *_turns_of(fields, "completion")])


def alpaca(fields: Fields) -> Conversation:
    """{"instruction", "output"}, and optionally input, put after the instruction and a blank line.

    "history": [[question, answer], ...] goes before them, as in LLaMA-Factory.
    """
    instruction, output = _text_of(fields, "instruction"), _text_of(fields, "output")
    more = _optional_text(fields, "input")
    for name, value in (("instruction", instruction), ("input", more), ("output", output)):
        turns.refuse_placeholders(value, name)
    asked = "\n\n".join(filter(None, [instruction, more]))
    return _as_conversation(
        fields, [*_history_turns(fields), Message("user", asked), Message("assistant", output)]
    )


def prompt(fields: Fields) -> Conversation:
    """{"prompt": text or a list of messages} or {"messages"}: what a model is asked; a final answer
    of messages is left out, as it is what the model is asked for."""
    asked = fields.get("prompt")
    if asked is not None and fields.get("messages") is not None:
        raise RowError("found prompt and messages, expected only one")
    if isinstance(asked, str):
        turns.refuse_placeholders(asked, "prompt")
        return _as_conversation(fields, [Message("user", asked)])
    if isinstance(asked, list):
        return _as_conversation(fields, _turns_of(fields, "prompt"))
    if fields.get("messages") is None:
        found = names(fields) if asked is None else f"prompt, which is {kind(asked)}"
        raise RowError(f"found {found}, expected prompt (text or a list of messages) or messages")
    row = messages(fields)
    if len(row.messages) > 1 and row.messages[-1].role == "assistant":
        return replace(row, messages=row.messages[:-1])
    return row


def text(fields: Fields) -> Conversation:
    """{"text": ...}: plain text, trained whole; carried as one message without a role."""
    found = _text_of(fields, "text")
    turns.refuse_media(fields)
    if f"</{turns.PICTURE[1:]}" not in found:  # of XML
        turns.refuse_placeholders(found, "text")
    return Conversation((Message("", found),))


FORMATS: dict[str, Callable[[Fields], Conversation]] = {
    "messages": messages,
    "sharegpt": sharegpt,
    "prompt-completion": prompt_completion,
    "alpaca": alpaca,
    "text": text,
}

SIGNS = {
    "messages": {"messages"},
    "sharegpt": {"conversations"},
    "prompt-completion": {"prompt", "completion"},
    "alpaca": {"instruction", "output"},
    "text": {"text"},
}
"""The fields that a row of each format must have; the more structured formats come first."""

VARIABLES = "chat_template_kwargs"
"""The field with the variables that a row gives to its chat template, in TRL's word."""

_BESIDE = ("system", "tools", "functions", VARIABLES)
_ALPACAS = ("input", "history")
FIELDS = frozenset().union(*SIGNS.values(), _BESIDE, _ALPACAS)
"""Every field that some format reads: the names a column may be given."""


def read(fields: Fields, format: str) -> Conversation:
    """The conversation of a row in this format, with the names of the fields that it does not read.

    Raises RowError.
    """
    found = FORMATS[format](fields)
    unread = unread_fields(fields, reads(format))
    return replace(found, unread=unread) if unread else found


@cache
def reads(format: str) -> frozenset[str]:
    """Every field that a format reads, those that a row may lack among them."""
    more: dict[str, tuple[str, ...]] = {"text": (), "alpaca": (*_BESIDE, *_ALPACAS)}
    return frozenset(SIGNS[format]).union(more.get(format, _BESIDE))


def _text_of(fields: Fields, name: str) -> str:
    if name not in fields:
        raise RowError(f"no field {name}, found {names(fields)}")
    value = fields[name]
    if not isinstance(value, str):
        cure = (
            "; write it as JSON text, as json.dumps does" if isinstance(value, dict | list) else ""
        )
        raise RowError(f"{name} is {kind(value)}, expected text{cure}")
    return value


def _optional_text(fields: Fields, name: str) -> str:
    """A field that may be missing, null or blank: tables have a cell for it in every row."""
    value = _text_of(fields, name) if fields.get(name) is not None else ""
    return value if value.strip() else ""


def _turns_of(fields: Fields, name: str) -> list[Message]:
    if name not in fields:
        raise RowError(f"no field {name}, found {names(fields)}")
    value = fields[name]
    found = (as_list(value, name) or value) if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        what = "an empty list" if found == [] else kind(found)
        raise RowError(f"{name} is {what}, expected a list of messages")
    return [turns.message(turn, f"{name}[{number}]") for number, turn in enumerate(found)]


def _as_conversation(fields: Fields, found: list[Message]) -> Conversation:
    """Combine the messages of a row with the system text and the tools given beside them."""
    turns.refuse_media(fields)
    system = _optional_text(fields, "system")
    own = found[0].content if found[0].role == "system" else None
    if system and own is None:
        found = [Message("system", system), *found]
    elif system and own != system:
        raise RowError("system is both beside the messages and among them, expected only one")
    tools = calls.tools(fields.get("tools")) or calls.functions(fields.get("functions"))
    return Conversation(tuple(found), tools, calls.variables(fields.get(VARIABLES)))


def _history_turns(fields: Fields) -> list[Message]:
    value = fields.get("history")
    value = as_list(value, "history") if isinstance(value, str) and value.strip() else value or []
    if not isinstance(value, list):
        found = kind(fields["history"])
        raise RowError(f"history is {found}, expected a list of [question, answer]")
    found_turns = []
    for number, pair in enumerate(value):
        whole = isinstance(pair, list) and len(pair) == 2
        if not whole or not all(isinstance(part, str) for part in pair):
            raise RowError(f"history[{number}] is {kind(pair)}, expected [question, answer]")
        for text in pair:
            turns.refuse_placeholders(text, f"history[{number}]")
        found_turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return found_turns


def rename(fields: Fields, columns: Mapping[str, str]) -> dict[str, Any]:
    """Give columns our names: `columns` maps our field to their column, nested ones as a.b.

    A renamed column loses its old name. Raises RowError for a column that is missing.
    """
    if not columns:
        return dict(fields)
    moved = {ours: _find_column(fields, ours, theirs) for ours, theirs in columns.items()}
    taken = set(columns.values())
    return {**{name: value for name, value in fields.items() if name not in taken}, **moved}


def _find_column(fields: Fields, ours: str, theirs: str) -> Any:
    if theirs in fields:
        return fields[theirs]
    value: Any = fields
    inner = theirs.split(".")
    for depth, name in enumerate(inner):
        if not isinstance(value, Mapping) or name not in value:
            where = f" in {'.'.join(inner[:depth])}" if depth else ""
            found = names(value) if isinstance(value, Mapping) else kind(value)
            near = closest(name, map(str, value)) if isinstance(value, Mapping) else None
            hint = f"; did you mean {'.'.join([*inner[:depth], near])}?" if near else ""
            raise RowError(f"data.columns.{ours}: no column {name}{where}, found {found}{hint}")
        value = value[name]
    return value


def detect(fields: Fields, mapped: Collection[str] = ()) -> str:
    """The format whose fields this row has, the first in `SIGNS` if several fit.

    One that reads a field in `mapped` (the new names of renamed columns) takes precedence. Raises
    RowError; which columns could be mapped is for `columns`.
    """
    filled = {name for name, value in fields.items() if value is not None}
    for present in (filled, set(fields)):
        fitting = [name for name, needed in SIGNS.items() if needed <= present]
        wanted = [name for name in fitting if SIGNS[name] & set(mapped)]
        if fitting:
            return (wanted or fitting)[0]
    known = "; ".join(f"{name}: {', '.join(sorted(needed))}" for name, needed in SIGNS.items())
    raise RowError(f"found the fields {names(fields)}, expected those of a format ({known})")


_ALSO = {
    "messages": ("conversation", "chat", "dialog", "dialogue", "turns", "history"),
    "conversations": (),
    "prompt": ("question", "query", "problem", "user", "human", "input", "instruction", "source"),
    "completion": ("answer", "response", "solution", "assistant", "reply", "output", "target"),
    "instruction": (),
    "output": ("response", "answer", "completion"),
    "text": ("content", "document", "body"),
    "input": ("context",),  # optional in its format, so it would be lost unnoticed
}
"""Other names for the fields of our formats, the likeliest first."""


def guess_columns(fields: Fields) -> dict[str, str]:
    """The `data.columns` that turn these fields into a format, or none if their names tell nothing.

    `columns.propose` also looks at what they hold.
    """
    for format in ("messages", "sharegpt", "alpaca", "prompt-completion", "text"):
        found = {ours: _find_called(fields, ours) for ours in sorted(SIGNS[format], reverse=True)}
        if format in ("messages", "sharegpt"):
            found = {
                ours: theirs if isinstance(fields.get(theirs or ""), list) else None
                for ours, theirs in found.items()
            }
        if all(found.values()) and len(set(found.values())) == len(found):
            more = _find_called(fields, "input")
            if format == "prompt-completion" and more and more not in found.values():
                found = {"instruction": found["prompt"], "output": found["completion"]}
                format = "alpaca"  # the only one that reads what a question is about
            if format == "alpaca" and more:
                found["input"] = more
            order = ("instruction", "input", "output") if format == "alpaca" else tuple(found)
            named = {ours: found[ours] for ours in order if ours in found}
            return {ours: name for ours, name in named.items() if name and ours != name}
    return {}


def _find_called(fields: Fields, ours: str) -> str | None:
    lower = {str(name).lower(): str(name) for name in fields}
    for word in (ours, *_ALSO[ours]):
        if word in lower:
            return lower[word]
    near = closest(ours, lower, 0.8)
    return lower[near] if near else None
