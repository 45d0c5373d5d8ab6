"""The shape of a model given by size, directory or hub id, without torch."""

import os
import re
from pathlib import Path

from loractl.errors import ModelError
from loractl.models.shape import read as shapes
from loractl.models.shape.sizes import SIZES
from loractl.models.shape.types import ModelShape

FAST_BF16 = ("avx512_bf16", "amx_bf16")


def shape_of(model: str) -> ModelShape:
    """The shape of a size (7B), of a directory or its config.json, or of a hub id in the hub cache.

    Raises ModelError; nothing is downloaded.
    """
    if model.upper() in SIZES:
        return shapes.named(model.upper())
    path = Path(model).expanduser()
    if path.exists():
        if path.suffix == ".gguf":
            raise ModelError(
                f"{model}: planning does not read .gguf files; give the model's directory with its"
                f" config.json, or a size: {', '.join(SIZES)}"
            )
        return shapes.read(path)
    if (cached := _in_cache(model)) is not None:
        return shapes.read(cached)
    raise ModelError(
        f"{model}: no such directory, not in the hub cache, and not one of the sizes"
        f" {', '.join(SIZES)}; planning downloads nothing"
    )


def directory_of(model: str) -> Path | None:
    """The directory of a model on this machine, if there is one."""
    path = Path(model).expanduser()
    return path if path.is_dir() else _in_cache(model)


def _in_cache(name: str) -> Path | None:
    """The newest snapshot of a hub id in the cache of huggingface_hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    found = hub_cache().glob(f"models--{name.replace('/', '--')}/snapshots/*/config.json")
    return max((path.parent for path in found), key=lambda p: p.stat().st_mtime, default=None)


def hub_cache() -> Path:
    """The directory in which huggingface_hub keeps what it has downloaded."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def automatic_dtype() -> str:
    """The dtype that model.dtype: auto will most likely mean, found without torch but by the rules
    of `models.load`."""
    if Path("/dev/nvidia0").exists():
        return "bfloat16"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "float32"
    return "bfloat16" if any(flag in flags for flag in FAST_BF16) else "float32"
