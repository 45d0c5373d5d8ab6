"""Bases whose files are quantized already: which method, and what can be done with it."""

import json
from pathlib import Path
from typing import Any

from loractl.errors import ModelError
from loractl.quant import bitsandbytes_files

UNPACKED_BY = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
"""Methods that transformers turns back into plain numbers while it loads, by their settings."""


def stored_quantization(directory: Path) -> dict[str, Any]:
    """What config.json says of it; empty for a plain model."""
    path = directory / "config.json"
    config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for holder in (config, config.get("text_config") or {}):
        if isinstance(found := holder.get("quantization_config"), dict) and found:
            return found
    return {}


def method_of(directory: Path) -> str | None:
    """bitsandbytes, or another method's name; None for a plain model."""
    found = stored_quantization(directory)
    if not found:
        return None
    packs = found.get("load_in_4bit") or found.get("load_in_8bit")
    return bitsandbytes_files.METHOD if packs else str(found.get("quant_method"))


def require_readable(name: str, directory: Path) -> None:
    """Raise ModelError for a method whose weights cannot be unpacked here."""
    method = method_of(directory)
    if method is None or method == bitsandbytes_files.METHOD or method in UNPACKED_BY:
        return
    raise ModelError(
        f"model {name}: found weights quantized with {method}, expected plain ones, or those of"
        f" bitsandbytes, {' or '.join(UNPACKED_BY)}; name the base it was quantized from, and set"
        " model.quantization: nf4"
    )


def kind_in_files(directory: Path) -> str | None:
    """The kind of `model.quantization` that the files of bitsandbytes hold; None for others."""
    if method_of(directory) != bitsandbytes_files.METHOD:
        return None
    found = stored_quantization(directory)
    if found.get("load_in_8bit"):
        return "int8"
    return "nf4-double" if found.get("bnb_4bit_use_double_quant") else "nf4"


def unpacking(directory: Path) -> dict[str, Any]:
    """Options of transformers' loader that give plain weights."""
    settings = UNPACKED_BY.get(method_of(directory) or "")
    if settings is None:
        return {}
    import transformers

    return {"quantization_config": getattr(transformers, settings)(dequantize=True)}


def comes_packed(directory: Path, gguf: str | None) -> bool:
    """Whether the weights in its files are bitsandbytes'."""
    return not gguf and kind_in_files(directory) is not None


def is_unpacked(directory: Path, gguf: str | None) -> bool:
    """Whether its files are in a packing that transformers takes apart while it loads them."""
    return bool(gguf or unpacking(directory))
