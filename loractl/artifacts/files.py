"""Publishes files and directories: written beside their place, synced, renamed."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from loractl import leftovers, text
from loractl.errors import ArtifactError, StorageError, is_of_the_disk


@contextlib.contextmanager
def told(path: Path, *, needs: int | None = None) -> Iterator[None]:
    """Turn disk errors into a StorageError with the path, the reason, bytes needed and free."""
    try:
        yield
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        raise StorageError(f"{path}: {error.strerror}{_space_left(path, needs)}") from error


def require_space(path: Path, needs: int) -> None:
    """Raise StorageError if the disk of a path has less than `needs` bytes free."""
    if free_bytes(path) < needs:
        raise StorageError(f"{path}: {os.strerror(errno.ENOSPC)}{_space_left(path, needs)}")


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that a path is on, or would be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def _space_left(path: Path, needs: int | None) -> str:
    needed = f"{text.size(needs)} ({needs} bytes) needed, " if needs is not None else ""
    try:
        left = free_bytes(path)
    except OSError:
        return ""
    return f"; {needed}{text.size(left)} ({left} bytes) free; what was here before is unchanged"


def as_json(content: Any) -> str:
    """JSON with sorted keys: equal contents give equal texts."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys."""
    path.write_text(as_json(content), encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file with the mode of any new file. Raises OSError."""
    own = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(own, path, metadata={"format": "pt"})
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise StorageError(f"{path}: cannot be written: {error}") from None
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
    give_usual_mode(path)


def give_usual_mode(path: Path) -> None:
    """Give a file the mode of any new file; safetensors creates its own with 0600."""
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
    except (OSError, RuntimeError) as error:  # a file that cannot be opened: torch's own words
        raise ArtifactError(f"{path}: cannot be read: {error}") from None


def read_text(path: Path) -> str:
    """Read a UTF-8 text, line endings unchanged. Raises ArtifactError naming the file."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ArtifactError naming the file."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of over 4300 digits
        raise ArtifactError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: found {type(content).__name__}, expected a JSON object")
    return content


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network disks cannot sync one
            raise
    finally:
        os.close(descriptor)


def publish(final: Path, write: Callable[[Path], None], *, needs: int | None = None) -> None:
    """Let `write` fill a new directory, sync it, and give it its name by one rename.

    Anything already at that name is replaced, and nothing half-written ever appears there. `needs`
    is the number of bytes it will take, if known. Raises StorageError.
    """
    beside = leftovers.being_made(final)
    with told(final, needs=needs):
        final.parent.mkdir(parents=True, exist_ok=True)
        leftovers.sweep_name(final)
        if needs is not None:
            require_space(final, needs)
        try:
            beside.mkdir()
            write(beside)
            for path in sorted(beside.rglob("*")):
                sync(path)
            sync(beside)
            _give_name(beside, final)
            sync(final.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _give_name(beside: Path, final: Path) -> None:
    """Rename; the old holder of the name is removed, or restored if the new one cannot take it."""
    if not final.exists() and not final.is_symlink():
        beside.rename(final)
        return
    old = leftovers.being_removed(final)
    final.rename(old)
    try:
        beside.rename(final)
    except BaseException:
        old.rename(final)
        raise
    leftovers.delete(old)


def publish_file(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file in a directory beside `final`, sync it, and give it its name."""
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = leftovers.being_made(final)
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

    For a link to a directory only the link is removed.
    """
    going = leftovers.being_removed(path)
    path.rename(going)
    leftovers.delete(going)


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content at once: a reader sees the old text or the new."""
    beside = leftovers.being_made(path)
    with told(path):
        try:
            beside.write_text(text, encoding="utf-8")
            sync(beside)
            beside.rename(path)
            sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
