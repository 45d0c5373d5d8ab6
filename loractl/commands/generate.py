"""`loractl generate`: text from a base model, with or without an adapter."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl import console
from loractl.commands.arguments import GenerationOptions, parse_adapters
from loractl.errors import ConfigError, DataError
from loractl.records import Conversation, Message
from loractl.text import counted

if TYPE_CHECKING:
    from loractl.data.prompts import Asked
    from loractl.generation.sample import Answer


@dataclass(frozen=True)
class Prompt:
    """One prompt, and the name of the adapter that answers it (None: the base)."""

    asked: Conversation
    adapter: str | None
    where: str = "--prompt"  # the option, or file and line


def run(
    *,
    prompts: Sequence[str],
    prompts_file: Path | None,
    model: str | None,
    adapters: Sequence[str],
    options: GenerationOptions,
    as_json: bool,
) -> int:
    """Answer each prompt, in order. Rows of a file may name their adapter; null means the base."""
    options.check()
    directories = parse_adapters(adapters)
    default = next(iter(directories)) if len(directories) == 1 else None
    asked = [Prompt(Conversation((Message("user", text),)), default) for text in prompts]
    if prompts_file is not None:
        asked += read_prompts(prompts_file, directories, default)
    if not asked:
        raise ConfigError("no prompt; give --prompt TEXT or --prompts FILE")
    if len(directories) > 1 and prompts:
        raise ConfigError(
            "--prompt: needs a single --adapter; use --prompts, whose rows name their adapter"
        )

    answers = _answer_prompts(asked, model, directories, options)
    for number, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
        row = {
            "index": number,
            "adapter": prompt.adapter,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "tokens": len(answer.ids),
        }
        console.result(json.dumps(row, ensure_ascii=False) if as_json else answer.text)
    return 0


def read_prompts(path: Path, known: dict[str, Path], default: str | None) -> list[Prompt]:
    """Read a JSON-lines file of {"prompt"} or {"messages"} rows, each with an optional "adapter".

    Raises DataError.
    """
    from loractl.data import rows, sources

    if not path.is_file():
        raise ConfigError(f"--prompts: {path} does not exist")
    found = []
    for row in sources.read(path):
        fields: dict[str, Any] = row.fields
        try:
            if row.error is not None:
                raise rows.RowError(row.error)
            asked = _with_unread(rows.prompt(fields), fields)
        except rows.RowError as error:
            raise DataError(f"{path}:{row.line}: {error}") from None
        name = fields.get("adapter", default)
        if name is not None and (not isinstance(name, str) or name not in known):
            names = ", ".join(known) or "none was given"
            raise DataError(
                f"{path}:{row.line}: adapter: found {name!r}, expected one of --adapter: {names}"
            )
        found.append(Prompt(asked, name, f"{path}:{row.line}"))
    return found


def _with_unread(asked: Conversation, fields: Mapping[str, Any]) -> Conversation:
    """The row with the names of its fields that say something which no prompt or training row of
    these forms reads."""
    from loractl.data import rows

    known = rows.reads("messages") | rows.reads("prompt-completion") | {"adapter"}
    unread = (n for n, value in fields.items() if n not in known and value not in (None, "", []))
    return replace(asked, unread=tuple(map(str, unread)))


def _answer_prompts(
    asked: Sequence[Prompt],
    model: str | None,
    directories: Mapping[str, Path],
    options: GenerationOptions,
) -> "list[Answer]":
    from loractl.data.rendering import TemplateError
    from loractl.engine.speakers import open_hub

    opened = open_hub(model, directories, options.dtype)
    found = []
    for one in asked:
        try:
            found.append(opened.ask(one.adapter, one.asked))
        except TemplateError as error:
            raise DataError(f"{one.where}: {error}") from None
    _note_unseen(found)
    prompts = [one.ids for one in found]
    return opened.answers(prompts, [one.adapter for one in asked], options.sampling)


def _note_unseen(found: "Sequence[Asked]") -> None:
    """Say what the prompts of a file leave out of its rows."""
    unread = Counter(name for one in found for name in one.unread)
    if unread:
        fields = ", ".join(f"{name} ({count:,})" for name, count in sorted(unread.items()))
        console.note(
            f"note: --prompts: fields that nothing reads, and the rows with them: {fields}"
        )
    if lost := sum(one.lost_thoughts for one in found):
        answers = counted(lost, "earlier answer")
        console.note(f"note: --prompts: the chat template drops the reasoning of {answers}")
