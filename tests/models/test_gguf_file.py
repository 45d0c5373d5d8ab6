"""The header of a GGUF file is read as gguf-py reads it, and a damaged one is refused."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader

from loractl.models.gguf_file import read_header

Make = Callable[..., Path]


def test_fields_and_tensors_are_those_that_gguf_finds(gguf_base: Make) -> None:
    path = gguf_base("llama")
    ours, theirs = read_header(path), GGUFReader(path)
    found = [(one.name, one.shape, one.ggml_type, one.offset) for one in ours.tensors]
    assert found == [
        (str(t.name), tuple(int(n) for n in t.shape[::-1]), int(t.tensor_type), int(t.data_offset))
        for t in theirs.tensors
    ]
    scalars = {
        name: field.contents()
        for name, field in theirs.fields.items()
        if "GGUF." not in name and field.types[0].name != "ARRAY"
    }
    assert ours.fields == scalars and ours.architecture == "llama"


def test_another_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK" + bytes(40))
    with pytest.raises(ValueError, match="expected GGUF"):
        read_header(path)


def test_a_header_cut_anywhere_is_refused(gguf_base: Make, tmp_path: Path) -> None:
    data, path = gguf_base("llama").read_bytes(), tmp_path / "model.gguf"
    for size in range(0, 3000, 37):
        path.write_bytes(data[:size])
        with pytest.raises((struct.error, ValueError)):
            read_header(path)


def test_lengths_and_types_that_cannot_be_are_refused(gguf_base: Make, tmp_path: Path) -> None:
    data, path = bytearray(gguf_base("llama").read_bytes()), tmp_path / "model.gguf"
    for at, change in ((24, b"\xff" * 8), (24 + 8 + len("general.architecture"), b"\x63")):
        damaged = data.copy()
        damaged[at : at + len(change)] = change
        path.write_bytes(damaged)
        with pytest.raises((struct.error, ValueError)):
            read_header(path)
