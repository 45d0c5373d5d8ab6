"""The data of another tool's config -> data.train, data.format and data.columns."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loractl.config.imports.their_templates import chat_template
from loractl.config.imports.values import Ours, is_off, is_on

Reasons = dict[str, str]
"""Their key -> why it has no counterpart."""
Found = tuple[Ours, Reasons]

TYPES = {
    "alpaca": "alpaca", "alpaca_chat": "alpaca", "chat_template": "messages",
    "messages": "messages",
    "sharegpt": "sharegpt", "completion": "text", "pretrain": "text", "text": "text",
    "conversational": "messages", "openai": "messages", "chatml": "messages",
    "input_output": "prompt-completion", "raw": "text", "alpaca_w_system": "alpaca",
}  # fmt: skip
"""Their names of formats, those of axolotl and unsloth."""
REGISTRY = "a name in LLaMA-Factory's dataset_info.json; give the file with --data"


def axolotl(document: Mapping[str, Any], folder: Path) -> Found:
    """datasets: [{path, type, ...}], test_datasets and pretraining_dataset."""
    ours: Ours = {}
    reasons: Reasons = {}
    for key in ("datasets", "pretraining_dataset"):
        if is_off(listed := document.get(key)):
            continue
        sources = [
            _axolotl_source(f"{key}[{i}]", one, ours, reasons)
            for i, one in enumerate(listed if isinstance(listed, list) else [listed])
        ]
        if key == "pretraining_dataset":
            for source in sources:
                source["format"] = "text"
        ours |= _as_train(sources)
    if not is_off(tests := document.get("test_datasets")):
        first = tests[0] if isinstance(tests, list) else tests
        path = first.get("path") if isinstance(first, dict) else first
        ours["data.eval"] = str(path)
        if isinstance(tests, list) and len(tests) > 1:
            reasons["test_datasets"] = "data.eval is one source: the first is used"
    return ours, reasons


def _axolotl_source(where: str, one: Any, ours: Ours, reasons: Reasons) -> dict[str, Any]:
    if not isinstance(one, dict):
        return {"path": str(one)}
    source: dict[str, Any] = {"path": str(one.get("path", ""))}
    kind, files = one.get("type"), one.get("data_files")
    if files:
        source["path"] = str(files[0] if isinstance(files, list) else files)
    if one.get("name"):
        source["path"] += f":{one['name']}"
    if isinstance(kind, dict):
        fields = {"field_instruction": "instruction", "field_output": "output"}
        fields |= {"field_input": "input", "field_system": "system"}
        moved = {mine: kind[theirs] for theirs, mine in fields.items() if kind.get(theirs)}
        ours["data.columns"] = {mine: name for mine, name in moved.items() if mine != name}
        reasons |= {
            f"{where}.type.{key}": "the model's own chat template is used"
            for key in kind
            if key not in fields
        }
    elif kind is not None:
        source |= _format_of(f"{where}.type", str(kind), reasons)
    for theirs, mine in (("field_messages", "messages"), ("field", "text")):
        if (column := one.get(theirs)) not in (None, mine):
            if (theirs, column) == ("field_messages", "conversations"):
                source["format"] = "sharegpt"
            else:
                ours["data.columns"] = {mine: column}
    if (split := one.get("split")) not in (None, "train"):
        if "[" in str(split):
            reasons[f"{where}.split"] = "part of a split: cut the file, or set train.steps"
        else:
            source["split"] = split
    known = {"path", "type", "split", "data_files", "name", "field_messages", "field", "ds_type"}
    template = chat_template(one.get("chat_template"))
    if isinstance(template, str):
        reasons[f"{where}.chat_template"] = template
    else:
        ours |= template
    for key in sorted(one.keys() - known - {"chat_template"}):
        if not is_off(one[key]):
            reasons[f"{where}.{key}"] = _ROW_KEYS.get(key, "rows are read by their own format")
    return source


_ROW_KEYS = {
    "roles_to_train": "data.train_on: assistant, which is the default",
    "train_on_eos": "every answer's end is trained",
}


def _format_of(key: str, kind: str, reasons: Reasons) -> dict[str, str]:
    """The format that a name such as alpaca or sharegpt.load_role stands for."""
    name = kind.lower().split(":")[0].split(".")[0]
    if name in TYPES:
        return {"format": TYPES[name]}
    reasons[key] = f"{kind}: the format is detected from the rows"
    return {}


def _as_train(sources: list[dict[str, Any]]) -> Ours:
    """One source as a path and a format, several as a list."""
    if len(sources) == 1 and not sources[0].keys() - {"path", "format"}:
        (one,) = sources
        format = {"data.format": one["format"]} if "format" in one else {}
        return {"data.train": one["path"], **format}
    return {"data.train": sources}


def trl(document: Mapping[str, Any], folder: Path) -> Found:
    """dataset_name, dataset_config and dataset_train_split, or datasets: [{path, split}]."""
    reasons: Reasons = {}
    sources = []
    if name := document.get("dataset_name"):
        config, split = document.get("dataset_config"), document.get("dataset_train_split")
        source = {"path": f"{name}:{config}" if config else str(name)}
        sources.append(source | ({"split": split} if split not in (None, "train") else {}))
    for number, one in enumerate(document.get("datasets") or []):
        path = f"{one['path']}:{one['name']}" if one.get("name") else str(one.get("path"))
        split = one.get("split")
        sources.append({"path": path} | ({"split": split} if split not in (None, "train") else {}))
        for key in sorted(one.keys() - {"path", "name", "split"}):
            reasons[f"datasets[{number}].{key}"] = "rows are read by their own format"
    if not is_off(document.get("dataset_test_split")):
        reasons["dataset_test_split"] = "data.eval takes a file, or a share of the rows"
    return (_as_train(sources) if sources else {}), reasons


def llamafactory(document: Mapping[str, Any], folder: Path) -> Found:
    """dataset: names in dataset_info.json, which is looked up in dataset_dir."""
    ours: Ours = {}
    reasons: Reasons = {}
    directory = document.get("dataset_dir", "data")
    known, beside = _registry(str(directory), folder)
    for key, target in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        if is_off(value := document.get(key)):
            continue
        names = value if isinstance(value, list) else [n.strip() for n in str(value).split(",")]
        sources = [_registered(name, known, beside, ours) for name in names]
        if any(str(name) not in known and not Path(str(name)).suffix for name in names):
            reasons[key] = REGISTRY
        if target == "data.train":
            ours |= _as_train(sources)
        else:
            ours[target] = sources[0]["path"]
    if "data.train" in ours and document.get("stage") == "pt":
        ours.setdefault("data.format", "text")
    return ours, reasons


def _registry(directory: str, folder: Path) -> tuple[dict[str, Any], Path]:
    for place in (Path(directory), folder / directory):
        try:
            content = json.loads((place / "dataset_info.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return content, place
    return {}, Path(directory)


def _registered(name: Any, known: Mapping[str, Any], beside: Path, ours: Ours) -> dict[str, Any]:
    entry = known.get(str(name))
    if not isinstance(entry, dict):
        return {"path": str(name)}
    file = entry.get("file_name")
    path = str(beside / file) if file else str(entry.get("hf_hub_url", name))
    columns = entry.get("columns") or {}
    fields = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    fields |= {"messages": "conversations", "history": "history", "tools": "tools"}
    moved = {fields[theirs]: column for theirs, column in columns.items() if theirs in fields}
    if moved := {mine: column for mine, column in moved.items() if mine != column}:
        ours["data.columns"] = moved
    sharegpt = {"format": "sharegpt"} if entry.get("formatting") == "sharegpt" else {}
    return {"path": path, **({} if moved else sharegpt)}


def unsloth(document: Mapping[str, Any], folder: Path) -> Found:
    """data: {dataset, local_dataset, format_type}."""
    reasons: Reasons = {}
    local = document.get("local_dataset")
    paths = local if isinstance(local, list) else [local]
    if is_off(local):
        paths = [document.get("dataset") or document.get("dataset_name")]
    kind = document.get("format_type")
    format = {}
    if not is_off(kind) and str(kind).lower() != "auto":
        format = _format_of("format_type", str(kind), reasons)
    sources = [{"path": str(path), **format} for path in paths if not is_off(path)]
    return (_as_train(sources) if sources else {}), reasons


def torchtune(document: Mapping[str, Any], folder: Path) -> Found:
    """dataset: {_component_, source, ...}, here as dataset.source and so on."""
    ours: Ours = {}
    reasons: Reasons = {}
    component = str(document.get("dataset._component_", "")).rpartition(".")[2]
    source = document.get("dataset.data_files") or document.get("dataset.source")
    default, format = _COMPONENTS.get(component, ("", ""))
    if source or default:
        ours["data.train"] = str(source or default)
    if document.get("dataset.conversation_style") == "openai":
        format = "messages"
    if format:
        ours["data.format"] = format
    elif component:
        reasons["dataset._component_"] = f"{component}: the format is detected from the rows"
    column = document.get("dataset.conversation_column") or document.get("dataset.column")
    mine = {"messages": "messages", "sharegpt": "conversations", "text": "text"}.get(format, "")
    if column and mine and column != mine:
        ours["data.columns"] = {mine: column}
    if isinstance(columns := document.get("dataset.column_map"), dict):
        fields = {"input": "prompt", "output": "completion"}
        ours["data.columns"] = {fields.get(key, key): name for key, name in columns.items()}
    for key in ("dataset.new_system_prompt", "dataset.split"):
        if not is_off(document.get(key)) and document[key] != "train":
            reasons[key] = "put it into the rows"
    if is_on(document.get("dataset.train_on_input")):
        ours["data.train_on"] = "all"
    return ours, reasons


_COMPONENTS = {
    "alpaca_dataset": ("tatsu-lab/alpaca", "alpaca"),
    "alpaca_cleaned_dataset": ("yahma/alpaca-cleaned", "alpaca"),
    "chat_dataset": ("", "sharegpt"),
    "instruct_dataset": ("", "prompt-completion"),
    "text_completion_dataset": ("", "text"),
    "cnn_dailymail_articles_dataset": ("ccdv/cnn_dailymail", "text"),
}
DATA: dict[str, Callable[[Mapping[str, Any], Path], Found]] = {
    "LLaMA-Factory": llamafactory,
    "axolotl": axolotl,
    "TRL": trl,
    "unsloth": unsloth,
    "torchtune": torchtune,
}
READ: dict[str, frozenset[str]] = {
    "LLaMA-Factory": frozenset({"dataset", "dataset_dir", "eval_dataset"}),
    "axolotl": frozenset({"datasets", "pretraining_dataset", "test_datasets"}),
    "TRL": frozenset(
        {"dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "datasets"}
    ),
    "unsloth": frozenset({"dataset", "local_dataset", "format_type", "dataset_name"}),
    "torchtune": frozenset({
        "dataset._component_", "dataset.source", "dataset.data_files", "dataset.column",
        "dataset.conversation_column", "dataset.conversation_style", "dataset.column_map",
        "dataset.new_system_prompt", "dataset.split", "dataset.train_on_input",
    }),
}  # fmt: skip
"""The keys that the functions in DATA read."""
