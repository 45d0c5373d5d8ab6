"""The compiled library on disk: loaded only if nobody else can have written it.

It is code that will run. The directory and the file belong to this user alone, and owner, mode and
hash are checked on the same descriptor that is then loaded; a new library is written through the
descriptor of its directory. Swapping the file or the directory in between has no effect.
"""

import contextlib
import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from loractl.leftovers import being_made, sweep_name
from loractl.paths import (
    is_open_to_others,
    make_private_directory,
    open_directory,
    require_own,
)

ENDING_BYTES = 32
"""A library ends with the SHA-256 of everything before it, which a loader does not read. Mapping a
truncated file might kill the process instead of raising an error."""

Compile = Callable[[Path], Path]
"""Compiles into an empty directory and returns the path of the library."""


def load_library(place: Path, names: tuple[str, ...], compile_into: Compile) -> ctypes.CDLL:
    """The library at `place`, with functions of these names; compiled if it is missing, damaged, or
    possibly written by others.

    If nothing can be cached, it is compiled for this process only. Raises OSError if it cannot be
    written or loaded at all.
    """
    try:
        with open_directory(place.parent) as directory:
            return _open_trusted(directory, place, names)
    except OSError:
        pass
    # Not compiled next to `place`: anyone who can rename a directory above it could make the
    # compiler write elsewhere. In the system's temporary directory nobody can rename the files of
    # another user.
    with tempfile.TemporaryDirectory(prefix="loractl-kernels-") as working:
        made = _seal_library(compile_into(Path(working)))
        with contextlib.suppress(OSError):
            make_private_directory(place.parent)
            with open_directory(place.parent) as directory:
                _publish(made, directory, place)
                return _open_trusted(directory, place, names)
        with open_directory(made.parent) as directory:
            return _open_trusted(directory, made, names)


def _seal_library(library: Path) -> Path:
    """Append the hash and remove all access for other users, whatever the umask was."""
    with library.open("r+b") as file:
        os.fchmod(file.fileno(), 0o600)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(digest)
    return library


def _publish(made: Path, directory: int, place: Path) -> None:
    """Copy the library into an open directory; a single rename gives it its final name."""
    _require_private(os.fstat(directory), place.parent)
    sweep_name(place)
    name = being_made(place).name
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(made.read_bytes())
        os.replace(name, place.name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        raise


def _open_trusted(directory: int, place: Path, names: tuple[str, ...]) -> ctypes.CDLL:
    """The library of an open directory. Raises OSError if it is absent or damaged, or if somebody
    else may have written it."""
    _require_private(os.fstat(directory), place.parent)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # in case it is a pipe
    descriptor = os.open(place.name, flags, dir_fd=directory)
    try:
        content = read_checked(descriptor, place)
    except BaseException:
        os.close(descriptor)
        raise
    library = _map_library(descriptor, content)
    for name in names:
        if not hasattr(library, name):
            raise OSError(f"{place}: {name} is missing")
    return library


def read_checked(descriptor: int, place: Path) -> bytes:
    """The content of the open file, once it is known to be ours and intact. Raises OSError."""
    _require_private(os.fstat(descriptor), place)
    with open(descriptor, "rb", closefd=False) as file:
        content = file.read()
    if hashlib.sha256(content[:-ENDING_BYTES]).digest() != content[-ENDING_BYTES:]:
        raise OSError(f"{place}: damaged")
    return content


def _require_private(found: os.stat_result, path: Path) -> None:
    require_own(found, path)
    if is_open_to_others(found):
        raise OSError(f"{path}: other users can write to it")


def _map_library(descriptor: int, content: bytes) -> ctypes.CDLL:
    """Load what was checked. The descriptor stays open for the life of the process: the loader
    identifies libraries by name, and this name must not come to refer to another file."""
    by_descriptor = Path(f"/proc/self/fd/{descriptor}")
    if by_descriptor.exists():
        return ctypes.CDLL(str(by_descriptor))
    with tempfile.TemporaryDirectory(prefix="loractl-kernels-") as own:  # without /proc: a copy
        copy = Path(own) / "kernels.so"
        copy.write_bytes(content)
        return ctypes.CDLL(str(copy))
