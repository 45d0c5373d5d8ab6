"""The base model that `init` writes into a config, and why: named, of the quickstart, or cached.

No torch; nothing is downloaded.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loractl.errors import ModelError
from loractl.models.shape import read as shapes
from loractl.models.shape.types import ModelShape
from loractl.planning.known_model import automatic_dtype, directory_of, hub_cache
from loractl.planning.request import Request, memory_of
from loractl.text import size

QUICKSTART = Path(".models") / "SmolLM2-135M-Instruct"
SMALLEST = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class FirstModel:
    """A base model, as far as it can be read without loading it."""

    name: str
    why: str
    directory: Path | None = None  # None: it is not on this machine, or is a .gguf file
    shape: ModelShape | None = None  # None: it cannot be read
    positions: int | None = None


def choose(named: str | None) -> FirstModel:
    """The named model, else the quickstart's, else the largest cached one that fits, else the
    smallest one on the hub."""
    if named is not None:
        return _look_into(named, "as named by --model")
    if (QUICKSTART / "config.json").is_file():
        return _look_into(QUICKSTART.as_posix(), "found here; --model names another")
    free = free_memory()
    fitting = [(shape.parameters, name) for name, shape in cached() if _needs(shape) <= free]
    if fitting:
        _, name = max(fitting)
        why = f"the largest model in the hub's cache that fits into {size(free)} of free memory"
        return _look_into(name, why)
    return _look_into(SMALLEST, "the smallest useful one; no --model was given, none is on disk")


def _look_into(name: str, why: str) -> FirstModel:
    directory = directory_of(name)
    if directory is None:
        return FirstModel(name, why)
    try:
        shape: ModelShape | None = shapes.read(directory)
    except ModelError:
        shape = None
    return FirstModel(name, why, directory, shape, _positions(directory))


def _positions(directory: Path) -> int | None:
    """The positions that a config.json states, of any architecture."""
    try:
        content = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        found = content.get("text_config", content).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) and found > 1 else None


def cached() -> Iterator[tuple[str, ModelShape]]:
    """Every complete chat model in the hub's cache whose shape is known, with its hub id."""
    for folder in sorted(hub_cache().glob("models--*--*")):
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        directory = directory_of(name)
        if directory is None or not _is_complete(directory):
            continue
        try:
            yield name, shapes.read(directory)
        except ModelError:
            continue


def _is_complete(directory: Path) -> bool:
    try:
        config = (directory / "tokenizer_config.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    has_template = '"chat_template"' in config or (directory / "chat_template.jinja").is_file()
    has_weights = any(path.exists() for path in directory.glob("*.safetensors"))
    return has_template and has_weights and (directory / "tokenizer.json").is_file()


def _needs(shape: ModelShape) -> int:
    """Bytes of a small LoRA run with this model."""
    on_cpu = not has_gpu()
    request = Request(length=512, batch=2, dtype=automatic_dtype())
    found = memory_of(shape, request, "lora", on_cpu=on_cpu)
    return found.rss if on_cpu else found.on_gpu


def has_gpu() -> bool:
    return Path("/dev/nvidia0").exists()


def free_memory() -> int:
    """Free bytes of the GPU, if there is one, else of this machine."""
    if has_gpu():
        asked = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        try:
            told = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
            return int(told.stdout.split()[0]) << 20
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            pass  # a GPU whose memory is unknown: the machine's is a better guess than none
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
