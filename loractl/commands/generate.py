"""`loractl generate`: text from a base model, or from a base with an adapter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl import console
from loractl.errors import ConfigError, DataError, ModelError
from loractl.records import Message

if TYPE_CHECKING:
    from loractl.artifacts.adapter import Adapter
    from loractl.generation.sample import Sampling


DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Prompt:
    """One prompt, and the name of the adapter that answers it (None: the base)."""

    messages: list[Message]
    adapter: str | None
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Options:
    """The flags of the command that say how text is drawn."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    dtype: str = "auto"


def run(
    *,
    prompts: Sequence[str],
    prompts_file: Path | None,
    model: str | None,
    adapters: Sequence[str],
    options: Options,
    as_json: bool,
) -> int:
    """Answer every prompt, in order. Rows of a file may name their adapter; null means the base."""
    if options.dtype not in DTYPES:
        raise ConfigError(f"--dtype: {options.dtype!r}, expected one of {', '.join(DTYPES)}")
    directories = parse_adapters(adapters)
    default = next(iter(directories)) if len(directories) == 1 else None
    asked = [Prompt([Message("user", text)], default) for text in prompts]
    if prompts_file is not None:
        asked += read_prompts(prompts_file, directories, default)
    if not asked:
        raise ConfigError("no prompt: give --prompt TEXT or --prompts FILE")
    if len(directories) > 1 and prompts:
        raise ConfigError(
            "--prompt with several --adapter: use --prompts, whose rows name their adapter"
        )

    from loractl.artifacts.adapter import read
    from loractl.generation.sample import Sampling

    read_adapters = {name: read(path) for name, path in directories.items()}
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.seed)
    texts = _answer(asked, model, read_adapters, sampling, options.dtype)
    for number, (prompt, text) in enumerate(zip(asked, texts, strict=True)):
        row = {"index": number, "adapter": prompt.adapter, "text": text}
        console.result(json.dumps(row, ensure_ascii=False) if as_json else text)
    return 0


def parse_adapters(adapters: Sequence[str]) -> dict[str, Path]:
    """Read NAME=DIR, or DIR alone, which is named by its last part. Raises ConfigError."""
    found: dict[str, Path] = {}
    for text in adapters:
        name, equals, directory = text.partition("=")
        path = Path(directory if equals else text)
        name = name if equals else path.resolve().name
        if not name or name in found:
            raise ConfigError(f"--adapter: {text!r}, expected NAME=DIR with a name of its own")
        found[name] = path
    return found


def read_prompts(path: Path, known: dict[str, Path], default: str | None) -> list[Prompt]:
    """Read a JSON-lines file of {"prompt"} or {"messages"} rows, each with an optional "adapter".

    A final assistant message is left out: it is the answer, which the model is asked for. Raises
    DataError.
    """
    from loractl.data import rows, sources

    if not path.is_file():
        raise ConfigError(f"--prompts: {path} does not exist")
    found = []
    for row in sources.read(path):
        fields: dict[str, Any] = row.fields
        tools: tuple[Mapping[str, Any], ...] = ()
        try:
            if row.error is not None:
                raise rows.RowError(row.error)
            if isinstance(fields.get("prompt"), str):
                messages = [Message("user", fields["prompt"])]
            elif "messages" in fields:
                conversation = rows.messages(fields)
                messages, tools = list(conversation.messages), conversation.tools
            else:
                raise rows.RowError("expected a prompt (text) or messages")
        except rows.RowError as error:
            raise DataError(f"{path}:{row.line}: {error}") from None
        if messages[-1].role == "assistant" and len(messages) > 1:
            messages = messages[:-1]
        name = fields.get("adapter", default)
        if name is not None and (not isinstance(name, str) or name not in known):
            names = ", ".join(known) or "none is given"
            raise DataError(
                f"{path}:{row.line}: adapter {name!r}, expected one of --adapter: {names}"
            )
        found.append(Prompt(messages, name, tools))
    return found


def _answer(
    asked: Sequence[Prompt],
    model_name: str | None,
    adapters: dict[str, "Adapter"],
    sampling: "Sampling",
    dtype: str,
) -> list[str]:
    from loractl.artifacts.matching import load_
    from loractl.data.template import TemplateError, prompt_ids
    from loractl.generation.sample import generate
    from loractl.lora.inject import remove_
    from loractl.models import load

    source = load.locate(_model_name(model_name, adapters))
    tokenizer = load.load_tokenizer(source)
    device = load.choose_device()
    model = load.load_model(source, dtype=load.choose_dtype(dtype, device), device=device)
    plain_template = tokenizer.chat_template
    texts = [""] * len(asked)
    for name in dict.fromkeys(prompt.adapter for prompt in asked):
        adapter = adapters[name] if name is not None else None
        # Prompts are rendered with the template that the adapter was trained with.
        tokenizer.chat_template = (adapter and adapter.chat_template) or plain_template
        places = [i for i, prompt in enumerate(asked) if prompt.adapter == name]
        try:
            ids = [prompt_ids(tokenizer, asked[i].messages, asked[i].tools) for i in places]
        except TemplateError as error:
            raise DataError(f"prompt: {error}") from None
        if adapter is not None:
            load_(model, adapter)
        for place, text in zip(places, generate(model, tokenizer, ids, sampling), strict=True):
            texts[place] = text
        remove_(model)
    return texts


def _model_name(model: str | None, adapters: dict[str, "Adapter"]) -> str:
    """The base: as named (a run of method: full means its model), or the one the adapters name."""
    if model is not None:
        inside = Path(model) / "model"
        return str(inside) if (inside / "config.json").is_file() else model
    names = sorted({adapter.base for adapter in adapters.values() if adapter.base})
    if len(names) != 1:
        found = f"the adapters name {', '.join(names)}" if names else "no adapter names one"
        raise ModelError(f"no base model: {found}; give --model")
    return names[0]
