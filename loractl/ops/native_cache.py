"""The compiled library on disk: loaded only where nobody else can have written it.

It is code that will run. Directory and file are this user's alone, and owner, mode and hash are
checked on the one descriptor that is then loaded: whoever puts another file in its place between a
check and the loading has no effect.
"""

import ctypes
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from loractl.leftovers import making_in_cache
from loractl.paths import (
    is_open_to_others,
    make_private_directory,
    open_directory,
    require_own,
)

ENDING_BYTES = 32
"""A library ends with the SHA-256 of what is before, which a loader does not read: of a file cut
short, mapping it might kill the process instead of raising an error."""

Compile = Callable[[Path], Path]
"""Compiles into a directory that is empty, and returns the library."""


def load_library(place: Path, names: tuple[str, ...], compile_into: Compile) -> ctypes.CDLL:
    """The library at `place`, which has functions of these names; compiled where it is not there,
    damaged, or may have been written by others.

    Where nothing can be kept it is compiled for this process alone. Raises OSError where it cannot
    be written or loaded at all.
    """
    try:
        return _open_trusted(place, names)
    except OSError:
        pass
    try:
        make_private_directory(place.parent)
        with making_in_cache(place.parent) as working:
            os.replace(_seal_library(compile_into(working)), place)
        return _open_trusted(place, names)
    except OSError:
        with tempfile.TemporaryDirectory(prefix="loractl-kernels-") as working:
            return _open_trusted(_seal_library(compile_into(Path(working))), names)


def _seal_library(library: Path) -> Path:
    """Append the hash, and take the file from everybody else, whatever the umask was."""
    with library.open("r+b") as file:
        os.fchmod(file.fileno(), 0o600)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(digest)
    return library


def _open_trusted(place: Path, names: tuple[str, ...]) -> ctypes.CDLL:
    """Raises OSError where the file is absent, damaged, or somebody else can have written it."""
    with open_directory(place.parent) as directory:
        _require_private(os.fstat(directory), place.parent)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(place.name, flags, dir_fd=directory)
    try:
        content = _read_checked(descriptor, place)
    except BaseException:
        os.close(descriptor)
        raise
    library = _map_library(descriptor, content)
    for name in names:
        if not hasattr(library, name):
            raise OSError(f"{place}: lacks {name}")
    return library


def _read_checked(descriptor: int, place: Path) -> bytes:
    """The content of what is open, once it is known to be ours and whole. Raises OSError."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{place}: no file")
    _require_private(found, place)
    with open(descriptor, "rb", closefd=False) as file:
        content = file.read()
    if hashlib.sha256(content[:-ENDING_BYTES]).digest() != content[-ENDING_BYTES:]:
        raise OSError(f"{place}: damaged")
    return content


def _require_private(found: os.stat_result, path: Path) -> None:
    require_own(found, path)
    if is_open_to_others(found):
        raise OSError(f"{path}: others may write to it")


def _map_library(descriptor: int, content: bytes) -> ctypes.CDLL:
    """Load what was checked. The descriptor stays open for the life of the process: the loader
    knows libraries by their names, and this one's must not come to mean another file."""
    by_descriptor = Path(f"/proc/self/fd/{descriptor}")
    if by_descriptor.exists():
        return ctypes.CDLL(str(by_descriptor))
    with tempfile.TemporaryDirectory(prefix="loractl-kernels-") as own:  # without /proc: a copy
        copy = Path(own) / "kernels.so"
        copy.write_bytes(content)
        return ctypes.CDLL(str(copy))
