"""How files and directories come to stand under their names: written beside, synced, renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from loractl.errors import ArtifactError, StorageError


def write_json(path: Path, content: Any) -> None:
    """Write JSON with stable keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file with the mode a new file has. Raises StorageError."""
    own = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(own, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise StorageError(f"{path}: cannot be written: {error}") from None
    give_usual_mode(path)


def give_usual_mode(path: Path) -> None:
    """Let a file have the mode that a new file has; safetensors makes its own 0600."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file whole, to the CPU. Raises ArtifactError naming the file."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found") from None
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise ArtifactError(f"{path}: truncated or corrupt: {error}") from None


def read_text(path: Path) -> str:
    """Read a UTF-8 text, its line ends as they are. Raises ArtifactError naming the file."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: not UTF-8 text: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ArtifactError naming the file."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of over 4300 digits
        raise ArtifactError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: found {type(content).__name__}, expected a JSON object")
    return content


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new directory, sync it, and give it its name by one rename.

    What stands under the name already is replaced; nothing half-written ever stands there.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = final.parent / f".{final.name}.tmp-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        write(beside)
        for path in sorted(beside.rglob("*")):
            sync(path)
        sync(beside)
        if final.exists() or final.is_symlink():
            remove(final)
        beside.rename(final)
        sync(final.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def publish_file(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file in a directory beside `final`, sync it, and give it its name."""
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = final.parent / f".{final.name}.tmp-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        made = beside / final.name
        write(made)
        sync(made)
        made.rename(final)
        sync(final.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a directory or a file; it loses its name first, so that no reader sees half of it.

    Of a link to a directory only the link goes.
    """
    going = path.parent / f".{path.name}.old-{os.getpid()}"
    path.rename(going)
    if going.is_symlink() or not going.is_dir():
        going.unlink()
    else:
        shutil.rmtree(going)


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content at once: a reader sees the old text or the new."""
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        sync(beside)
        beside.rename(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)
