"""`loractl init`: open the data, and write a config with a comment on every key that it sets."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loractl import console
from loractl.commands.arguments import parse_columns
from loractl.data.sources import exists
from loractl.errors import ConfigError, DataError, StorageError
from loractl.paths import is_hub_data
from loractl.planning import first_model
from loractl.planning.first_model import FirstModel
from loractl.text import closest, found, listed, printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

METHODS = ("lora", "qlora", "dora", "adalora", "full")
SHAPES = ("classification", "chat", "json-extraction", "tool-calls", "continued-pretraining")
TEMPLATES = (*METHODS, *SHAPES)
NOT_YET = ("dpo",)
DEFAULT_DATA = "train.jsonl"
_HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?(?<!\.gguf)")


@dataclass(frozen=True)
class InitRequest:
    """The arguments of `loractl init`, as typed."""

    templates: Sequence[str] = ()
    model: str | None = None
    data: str | None = None
    source: Path | None = None  # --from
    columns: Sequence[str] = ()  # FIELD=COLUMN


def run(asked: InitRequest, out: Path) -> int:
    """Write a config to a new file, or to stdout if `out` is `-`. Raises ConfigError, DataError."""
    method, shape = _read_templates(asked.templates)
    if str(out) != "-" and out.exists():
        raise _already_exists(out, "--out")
    columns = parse_columns(asked.columns)
    if asked.source is not None:
        from loractl.commands.imported_config import converted

        text = converted(
            asked.source,
            model=asked.model,
            data=asked.data,
            columns=columns,
            templates=asked.templates,
        )
    else:
        text = _config_text(asked, columns, method, shape)
    if str(out) == "-":
        console.result(text.rstrip("\n"))
        return 0
    write_new(out, text)
    console.note(printable(f"wrote {out}; next: loractl check {out}"))
    return 0


def _read_templates(names: Sequence[str]) -> tuple[str, str | None]:
    """The method and the shape of the data that --template names. Raises ConfigError."""
    for name in names:
        if name in NOT_YET:
            raise ConfigError(f"--template {name}: {name} is not available in this version")
        if name not in TEMPLATES:
            near = closest(name, TEMPLATES)
            hint = f"; did you mean {near}?" if near else ""
            what = f"found {found(name)}, expected {listed(list(TEMPLATES))}"
            raise ConfigError(printable(f"--template: {what}{hint}"))
    for kind, words in (("method", METHODS), ("shape of data", SHAPES)):
        given = list(dict.fromkeys(name for name in names if name in words))
        if len(given) > 1:
            raise ConfigError(f"--template: found {' and '.join(given)}, expected one {kind}")
    method = next((name for name in names if name in METHODS), "lora")
    return method, next((name for name in names if name in SHAPES), None)


def _config_text(
    asked: InitRequest, columns: Mapping[str, str], method: str, shape: str | None
) -> str:
    from loractl.data.survey import survey
    from loractl.reports import first_config

    model = choose_model(asked.model)
    data = asked.data or DEFAULT_DATA
    if asked.data is None and not exists(data):
        if columns:
            raise ConfigError(
                "--columns: set without --data, whose columns it names; add --data FILE"
            )
        why = f"there is no {data} here, and no --data was given"
        return first_config.unopened(model, data, method, shape, why)
    try:
        opened = survey(data, tokenizer_of(model), columns=columns)
    except DataError as error:
        if columns or exists(data) or not is_hub_data(data):
            raise
        return first_config.unopened(model, data, method, shape, str(error).splitlines()[0])
    text = first_config.opened(model, opened, method, shape)
    for line in first_config.summary(opened):
        console.note(printable(line))
    return text


def choose_model(named: str | None) -> FirstModel:
    """The base model to write. Raises ConfigError for a path that does not exist."""
    from loractl.engine.base import model_path

    if named is None:
        return first_model.choose(None)
    if not Path(named).expanduser().exists() and not _HUB_ID.fullmatch(named):
        raise ConfigError(printable(f"--model: {named} does not exist, and is not a hub id"))
    return first_model.choose(model_path(named))


def tokenizer_of(model: FirstModel) -> "Tokenizer | None":
    """The model's tokenizer, or None if it is not on this machine. Without torch."""
    from loractl.models.light_tokenizer import load_light

    path = Path(model.name).expanduser()
    directory = path.parent if path.suffix == ".gguf" else model.directory
    if directory is None or not (directory / "tokenizer.json").is_file():
        return None
    return load_light(directory)


def _already_exists(path: Path, option: str) -> ConfigError:
    return ConfigError(printable(f"{path}: already exists; choose another {option}"))


def write_new(path: Path, text: str, *, option: str = "--out") -> None:
    """Write a new file, named by `option`; a failed write leaves no file."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise _already_exists(path, option) from None
    except (FileNotFoundError, NotADirectoryError):
        what = f"{path.parent} is not a directory"
        raise ConfigError(
            printable(f"{path}: {what}; create it or choose another {option}")
        ) from None
    except OSError as error:
        raise StorageError(printable(f"{path}: cannot be written: {error.strerror}")) from None
    try:
        with file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StorageError(printable(f"{path}: cannot be written: {error.strerror}")) from None
