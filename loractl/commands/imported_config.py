"""`loractl init --from`: another tool's config as one of ours, with what could not be converted."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loractl import console
from loractl.config.imports.tools import DEFAULTS, Converted, convert, settle_conflicts_
from loractl.config.loader import read_mapping
from loractl.config.settings import RunConfig
from loractl.data import sources
from loractl.data.sources import exists
from loractl.errors import ConfigError
from loractl.planning import first_model
from loractl.reports.commented_config import commented
from loractl.text import printable

MEANINGS = {
    "method": "lora trains a small update, full every weight",
    "lora.rank": "the width of the update",
    "lora.target_modules": "the modules that get adapters",
    "lora.init": "how A and B start",
    "lora.scaling": "alpha / rank, or with rslora alpha / sqrt(rank)",
    "lora.layers": "the blocks that get adapters",
    "lora.start_from": "an adapter to train further; its own rank, alpha and target modules count,"
    " so none is set",
    "data.columns": "our field: your column",
    "data.format": "the layout of a row",
    "data.packing": "several examples per row, none of which sees another",
    "data.train_on": "which tokens are trained",
    "data.chat_template": "how a conversation becomes text, in place of the model's own way",
    "data.eval": "held-out rows: a share, or a file",
    "train.warmup": "a share of the steps, or from 1 on their number",
    "train.gradient_checkpointing": "recompute activations to save memory",
}
"""Of keys whose description is longer than a comment."""
START = "lora.start_from"
MISSING = "is not a directory here; put the adapter there, or change lora.start_from"
ORDER = ("model.name_or_path", "model", "method", "lora", "data.train", "data", "train", "seed")


def converted(
    path: Path,
    *,
    model: str | None,
    data: str | None,
    columns: Mapping[str, str],
    templates: Sequence[str],
) -> str:
    """The text of the config that this file becomes; `model` and `data` replace those in it, with
    the columns of `data`.

    Raises ConfigError.
    """
    if columns and data is None:
        raise ConfigError("--columns: set without --data, whose columns it names; add --data FILE")
    if templates:
        raise ConfigError("--template: set together with --from, which has its own; remove one")
    if (inside := path / "adapter_config.json").is_file():
        path = inside  # a directory with an adapter of PEFT
    document = read_mapping(path)
    try:
        found = convert(document, path.parent)
    except ConfigError as error:
        raise ConfigError(printable(f"{path}: {error}")) from None
    _set_base_(found, model)
    _set_data_(found, data, columns)
    planned = _plan_(found) if found.tool == "PEFT" else {}
    settle_conflicts_(found)
    _fit_warmup_(found)
    for why, keys in _by_reason(found).items():
        console.note(printable(f"note: {path}: not converted: {', '.join(keys)}: {why}"))
    if (start := found.settings.get(START)) is not None and not _is_there(start):
        console.note(printable(f"note: {path}: {found.source[START]}: {start} {MISSING}"))
    title = [
        f"Converted from a config of {found.tool}, {path.name}.",
        "Every other setting has a default: `loractl schema` lists them all.",
    ]
    keys = sorted(found.settings, key=_place)
    settings = [
        (key, found.settings[key], planned.get(key) or _comment(found, key)) for key in keys
    ]
    return commented(title, settings, _left_out(found))


def _set_base_(found: Converted, named: str | None) -> None:
    if named is not None:
        found.source.pop("model.name_or_path", None)
        found.set_({"model.name_or_path": named}, "--model")
    elif "model.name_or_path" not in found.settings:
        found.set_({"model.name_or_path": first_model.choose(None).name}, "")


def _set_data_(found: Converted, named: str | None, given: Mapping[str, str]) -> None:
    """Put the named rows in place of theirs, with the columns given or those that they need."""
    from loractl.data.survey import choose_columns  # brings numpy

    if named is not None:
        theirs = ["data.train", "data.format", "data.columns"]
        theirs += ["data.eval"] if isinstance(found.settings.get("data.eval"), str) else []
        for key in theirs:
            found.drop_(key, "replaced by --data")
        found.set_({"data.train": named}, "--data")
        columns = dict(given) or (choose_columns(named) if exists(named) else {})
        if columns:
            found.set_({"data.columns": columns}, "--data")
    elif "data.train" not in found.settings:
        found.set_({"data.train": "train.jsonl"}, "")
        found.not_mapped["data"] = "it names no data: give the file with --data"


def _plan_(found: Converted) -> dict[str, str]:
    """Fill in how to train, which an adapter's config does not say; the reason for each key."""
    from loractl.data.survey import survey
    from loractl.planning import first_run, row_counts

    ours = found.settings
    if not exists(ours["data.train"]):
        return {}
    model, columns = first_model.choose(ours["model.name_or_path"]), ours.get("data.columns")
    data = survey(ours["data.train"], row_counts.tokenizer_of(model.name), columns=columns)
    settings = first_run.settings(model, data, ours.get("method", "lora"), data.shape)
    missing = {
        one.key: one
        for one in settings
        if one.key not in ours and one.key.startswith(("data.", "train.", "seed"))
    }
    found.set_({key: one.value for key, one in missing.items()}, "")
    return {key: one.why for key, one in missing.items()}


def _fit_warmup_(found: Converted) -> None:
    """A share in place of warmup steps that are more than the steps of a run on these rows."""
    ours = found.settings
    warmup, path, steps = ours.get("train.warmup", 0), ours["data.train"], ours.get("train.steps")
    if warmup < 1:
        return
    which = "max_steps"
    if steps is None:
        if not isinstance(path, str) or not exists(path):
            return
        rows = sum(1 for _ in sources.read(path))
        window = ours.get("train.batch_size", 8) * ours.get("train.gradient_accumulation", 1)
        packed = 8 if ours.get("data.packing") else 1  # rows in one, roughly; more would be safer
        steps = int(rows / packed / window * ours.get("train.epochs", 1))
        which = f"the run's steps on {path}"
    if warmup > steps:
        theirs = found.source["train.warmup"]
        found.not_mapped[theirs] = f"more than {which}: 0.1 of them instead"
        found.set_({"train.warmup": 0.1}, "")


def _by_reason(found: Converted) -> dict[str, list[str]]:
    """The keys that were not converted, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for key, why in found.not_mapped.items():
        reasons.setdefault(why, []).append(key)
    return reasons


def _place(key: str) -> tuple[int, str]:
    """Sections in the order of our configs, keys in that of the settings."""
    section = key.partition(".")[0]
    rank = next((i for i, name in enumerate(ORDER) if name == key), None)
    if rank is None:
        rank = ORDER.index(section) if section in ORDER else len(ORDER)
    return rank, f"{_fields(key):06d}"


def _fields(key: str) -> int:
    """The number of a key among all settings."""
    number, section = 0, RunConfig
    for depth, name in enumerate(key.split(".")):
        fields: dict[str, Any] = section.model_fields
        number += list(fields).index(name) * 40 ** (2 - depth)
        section = fields[name].annotation
    return number


def _comment(found: Converted, key: str) -> str:
    section: Any = RunConfig
    *above, name = key.split(".")
    for part in above:
        section = section.model_fields[part].annotation
    described = section.model_fields[name].description or ""
    meaning = MEANINGS.get(key) or described.split(";")[0].split(":")[0]
    if key == START and not _is_there(found.settings[key]):
        meaning += f". It {MISSING}"
    if theirs := found.source[key]:
        return f"{theirs}: {meaning}"
    is_theirs = DEFAULTS[found.tool].get(key) == found.settings[key]
    return (
        f"{meaning}; {f'the default of {found.tool}' if is_theirs else 'not set in the original'}"
    )


def _is_there(adapter: str) -> bool:
    return Path(adapter).expanduser().is_dir()


def _left_out(found: Converted) -> list[str]:
    lines = []
    if found.not_mapped:
        lines.append(f"Not converted from {found.tool}:")
        lines += [f"  {', '.join(keys)}: {why}" for why, keys in _by_reason(found).items()]
    if found.off:
        lines.append(f"There is nothing to set for {', '.join(found.off)}.")
    return [line for text in lines for line in _wrapped(text)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 98, subsequent_indent="    ") or [""]
