"""Tensors of safetensors files that are read one by one when they are asked for.

Read, not mapped: the touched pages of a map count as memory of the process.
"""

import json
import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from loractl.models.torch_dtypes import STORED_FLOATS

LARGE = 1 << 20
"""Bytes of a tensor that gets pages of its own."""
DTYPES: dict[str, torch.dtype] = {
    **STORED_FLOATS,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where a tensor is; it has the methods of safetensors' slices that transformers calls."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def get_dtype(self) -> str:
        return self.dtype

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def __getitem__(self, whole: Any) -> Tensor:
        return self.read()

    def read(self) -> Tensor:
        """The tensor, in memory of its own. Raises SafetensorError for a truncated file."""
        kind = DTYPES[self.dtype]
        tensor = _room_for(math.prod(self.shape) * kind.itemsize)
        left = memoryview(tensor.numpy())  # type: ignore[arg-type]
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while len(left) and (count := file.readinto(left)):
                left = left[count:]
        if len(left):
            raise SafetensorError(f"{self.path}: ends within a tensor")
        return tensor.view(kind).view(self.shape)


def _room_for(size: int) -> Tensor:
    """Bytes that go back to the system as soon as nobody holds them: in the heap, tensors that come
    and go leave holes, with temporary copies 0.6 GB for a model of 0.8 GB."""
    if size < LARGE:
        return torch.empty(size, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


@dataclass(frozen=True)
class Made:
    """A value that is made when it is asked for, in place of a tensor."""

    make: Callable[[], Any]

    def get_dtype(self) -> str:
        return "U8"

    def __getitem__(self, whole: Any) -> Any:
        return self.make()


def tensors_in(path: Path) -> dict[str, Stored]:
    """Every tensor of a file by its name. Raises SafetensorError, OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise SafetensorError(f"{path}: no header of a safetensors file")
        try:
            header: Mapping[str, Any] = json.loads(file.read(length))
            found = {
                name: Stored(
                    path, 8 + length + one["data_offsets"][0], one["dtype"], tuple(one["shape"])
                )
                for name, one in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError) as error:
            raise SafetensorError(f"{path}: invalid header: {error}") from None
    for name, one in found.items():
        if one.dtype not in DTYPES:
            raise SafetensorError(f"{path}: {name} has dtype {one.dtype}")
        if one.offset + math.prod(one.shape) * DTYPES[one.dtype].itemsize > size:
            raise SafetensorError(f"{path}: ends before {name}")
    return found
