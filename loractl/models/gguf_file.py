"""The header of a GGUF file: its plain fields, and where its tensors are.

gguf-py's reader makes an array of every string of the vocabulary first, 2 to 8 s for 49,152 tokens;
this one steps over lists. The format: docs/gguf.md of ggml.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""The numbers of plain types -> their codes in `struct`."""
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)


@dataclass(frozen=True)
class Place:
    """Where a tensor is, and of which type it is."""

    name: str
    shape: tuple[int, ...]  # as torch orders it
    ggml_type: int
    offset: int  # from the start of the file


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    path: Path
    fields: dict[str, Any]  # without lists
    tensors: tuple[Place, ...]

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture"))


def read_header(path: Path) -> Header:
    """The header of a file. Raises ValueError for one that is no GGUF file or of another version,
    struct.error if it is cut short."""
    try:
        return _read(path)
    except (KeyError, OverflowError, MemoryError):
        raise ValueError(f"{path}: its header is damaged") from None


def _read(path: Path) -> Header:
    with path.open("rb") as file:
        magic, version, n_tensors, n_fields = _unpacked(file, "4sIQQ")
        if magic != b"GGUF" or version not in VERSIONS:
            raise ValueError(f"{path}: found {magic!r} version {version}, expected GGUF 2 or 3")
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            name = _string(file)
            value = _value(file, *_unpacked(file, "I"))
            if value is not None:
                fields[name] = value
        tensors = [_place(file) for _ in range(n_tensors)]
        step = int(fields.get("general.alignment", 32))
        start = math.ceil(file.tell() / step) * step
    moved = (Place(one.name, one.shape, one.ggml_type, start + one.offset) for one in tensors)
    return Header(path, fields, tuple(moved))


def _unpacked(file: BinaryIO, form: str) -> tuple[Any, ...]:
    form = f"<{form}"
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _string(file: BinaryIO) -> str:
    (length,) = _unpacked(file, "Q")
    return file.read(length).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    """A value of the type `kind`; None for a list, which is stepped over."""
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _unpacked(file, SCALARS[kind])[0]
    inner, count = _unpacked(file, "IQ")
    if inner in SCALARS:
        file.seek(count * struct.calcsize(SCALARS[inner]), 1)
        return None
    for _ in range(count):
        _value(file, inner)
    return None


def _place(file: BinaryIO) -> Place:
    name = _string(file)
    (n_dimensions,) = _unpacked(file, "I")
    shape = _unpacked(file, f"{n_dimensions}Q")
    return Place(name, shape[::-1], *_unpacked(file, "IQ"))
