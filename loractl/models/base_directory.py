"""Checks of a base model's directory before anything in it is loaded.

It comes from others: nothing in it may run code, be applied silently, or refer to files elsewhere.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loractl.errors import ModelError

INDEX = "model.safetensors.index.json"


def check(name: str, directory: Path) -> None:
    """Raise ModelError unless this is a safetensors model whose files stay in its directory."""
    config = directory / "config.json"
    adapters = (directory / "adapter_config.json", directory / "adapter" / "adapter_config.json")
    if not config.is_file() and any(path.is_file() for path in adapters):
        raise ModelError(
            f"model {name}: {directory} is an adapter or its run, not a base model; name its base,"
            " and the adapter in lora.start_from to train it further, or with --adapter to use it"
        )
    if not config.is_file():
        raise ModelError(f"model {name}: {config} not found; a base model has a config.json")
    content = _read(name, config)
    if not isinstance(content, dict) or "model_type" not in content:
        raise ModelError(f"model {name}: {config}: expected an object with model_type")
    require_no_adapter(name, directory)
    _require_inside(name, directory)
    if list(directory.glob("*.safetensors")):
        return
    if pickles := sorted(directory.glob("*.bin")):
        raise ModelError(
            f"model {name}: {pickles[0].name} is a pickle, which can run code, so it is not read;"
            " convert it to safetensors first"
        )
    raise ModelError(f"model {name}: no *.safetensors in {directory}; the weights are missing")


def require_no_adapter(name: str, directory: Path) -> None:
    """Raise ModelError if transformers would find an adapter next to the base and apply it."""
    if (directory / "adapter_config.json").exists():
        raise ModelError(
            f"model {name}: {directory} holds an adapter (adapter_config.json) beside the"
            " model, which would be applied silently; move it away, or name its base model here"
        )


def _require_inside(name: str, directory: Path) -> None:
    """Raise ModelError if the index of the weights points outside the directory."""
    index = directory / INDEX
    if index.is_file():
        content = _read(name, index)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict):
            raise ModelError(f"model {name}: {index}: expected an object with weight_map")
        for shard in sorted({str(value) for value in shards.values()}):
            if Path(shard).name != shard or shard in ("", ".", ".."):
                raise ModelError(
                    f"model {name}: {index}: found the shard {shard[:100]!r}, expected the name of"
                    " a file in the same directory"
                )


def shards(directory: Path) -> list[Path]:
    """The weight files that transformers would read: those of the index, or the only one."""
    index, only = directory / INDEX, directory / "model.safetensors"
    if index.is_file():
        names = {str(name) for name in _read(str(directory), index)["weight_map"].values()}
        return [directory / name for name in sorted(names)]
    return [only] if only.is_file() else sorted(directory.glob("*.safetensors"))


def brings_code(directory: Path) -> bool:
    """Whether the config of a checked base names Python code of its own."""
    config = directory / "config.json"
    return config.is_file() and "auto_map" in _read(str(directory), config)


def is_inside(path: Path, directory: Path) -> bool:
    """Whether a path, after following links, is in a directory or is a blob of the hub cache.

    There a snapshot, `models--a--b/snapshots/HASH`, consists of links to `models--a--b/blobs`.
    """
    target = path.resolve()
    is_blob = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    return is_blob or target.is_relative_to(directory.resolve())


def _read(name: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise ModelError(f"model {name}: {path}: not valid JSON ({error})") from None


def require_tensors(name: str, found: Mapping[str, Any]) -> None:
    """Raise ModelError for tensors that transformers did not find, or not in their shape."""
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"model {name}: tensors missing from its files: {len(missing)}; the first is"
            f" {missing[0]}"
        )
    if mismatched := sorted(found["mismatched_keys"]):
        raise ModelError(f"model {name}: the shape of {mismatched[0]} differs from its config.json")
