"""Safetensors files written strip by strip, and tensors of such files read by rows.

A file is laid out byte for byte as safetensors' own `save_file` does it, but no tensor needs to be
in memory whole. What is read is copied, not mapped: pages of a map that were touched count as
resident until it is closed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from loractl.lora.dense import strips

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
"""In the order in which safetensors sorts them; it writes the last of them first."""
RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES)}
BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
ALIGNMENT = 8  # of the first tensor


@dataclass(frozen=True)
class Strips:
    """A tensor to write: its strips of rows, top to bottom; of a scalar, itself."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    values: Callable[[], Iterator[Tensor]]

    @property
    def n_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_strips(path: Path, tensors: Sequence[Strips]) -> None:
    """Write a safetensors file. Raises OSError."""
    ordered = sorted(tensors, key=lambda one: (-RANKS[one.dtype], one.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for one in ordered:
        header[one.name] = {
            "dtype": DTYPES[one.dtype],
            "shape": one.shape,
            "data_offsets": [at, at := at + one.n_bytes],
        }
    words = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    words += b" " * (-len(words) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        for one in ordered:
            written = 0
            for strip in one.values():
                assert strip.dtype == one.dtype, f"{one.name}: {strip.dtype}"
                flat = strip.contiguous().reshape(-1).view(torch.uint8)
                written += file.write(flat.numpy().data)
            assert written == one.n_bytes, f"{one.name}: {written} bytes, expected {one.n_bytes}"


class StoredRows:
    """A tensor of a safetensors file, of which rows are read when they are asked for."""

    device = torch.device("cpu")

    def __init__(
        self, file: BinaryIO, begin: int, dtype: torch.dtype, shape: Sequence[int]
    ) -> None:
        self._file, self._begin = file, begin
        self.dtype, self.shape = dtype, torch.Size(shape)

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.shape[0])
        width = self.shape[1:].numel() * self.dtype.itemsize
        return self._read(start * width, torch.Size([stop - start, *self.shape[1:]]))

    def whole(self) -> Tensor:
        return self._read(0, self.shape)

    def strips(self) -> Iterator[Tensor]:
        if not self.shape:
            yield self.whole()
            return
        for start, stop in strips(self.shape):
            yield self[start:stop]

    def _read(self, at: int, shape: torch.Size) -> Tensor:
        held = torch.empty(shape.numel() * self.dtype.itemsize, dtype=torch.uint8)
        self._file.seek(self._begin + at)
        place = held.numpy().data
        while place:
            n = self._file.readinto(place)  # type: ignore[attr-defined]
            assert n, f"{self._file.name} has become shorter"
            place = place[n:]
        return held.view(self.dtype).view(shape)


@contextmanager
def opened(path: Path) -> Iterator[dict[str, StoredRows]]:
    """The tensors of a safetensors file by name, read from it as long as it is open.

    safetensors' own slices are not used: its "pread" backend (0.8.0) reads a whole tensor for each
    of them. Raises SafetensorError.
    """
    with safe_open(path, framework="pt"):
        pass  # it has looked at every size and offset
    with path.open("rb", buffering=0) as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        yield {
            name: StoredRows(
                file, 8 + size + told["data_offsets"][0], BY_NAME[told["dtype"]], told["shape"]
            )
            for name, told in header.items()
        }
