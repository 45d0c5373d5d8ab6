"""`loractl generate`: text from a base model, with or without an adapter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl import console
from loractl.commands.arguments import GenerationOptions, parse_adapters
from loractl.errors import ConfigError, DataError
from loractl.records import Conversation, Message

if TYPE_CHECKING:
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
            asked = rows.prompt(fields)
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


def _answer_prompts(
    asked: Sequence[Prompt],
    model: str | None,
    directories: Mapping[str, Path],
    options: GenerationOptions,
) -> "list[Answer]":
    from loractl.data.rendering import TemplateError
    from loractl.engine.speakers import open_hub

    opened = open_hub(model, directories, options.dtype)
    ids = []
    for one in asked:
        row = one.asked
        try:
            ids.append(opened.prompt_ids(one.adapter, row.messages, row.tools, row.variables))
        except TemplateError as error:
            raise DataError(f"{one.where}: {error}") from None
    return opened.answers(ids, [one.adapter for one in asked], options.sampling)
