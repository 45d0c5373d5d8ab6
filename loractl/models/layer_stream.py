"""Two buffers through which the frozen weights of all layers pass, in turn.

The weights of a layer are views of one buffer, at the same address each time, so modules and
kernels need not know. While one layer computes, a thread reads the next one in the direction of
travel into the other buffer: up in the forward pass, down in the backward pass.
"""

import math
import os
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from torch import Tensor

from loractl.errors import ModelError
from loractl.models.stored import DTYPES, Stored

ALIGNED = 64
"""Bytes: a cache line, and what vector instructions like best."""


@dataclass(frozen=True)
class Piece:
    """A tensor of a layer: where it is read from, and where in a buffer it goes."""

    stored: Stored
    dtype: torch.dtype  # in the buffer; another one than in the file is converted
    offset: int

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.stored.shape) * self.dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        return buffer[self.offset : self.end].view(self.dtype).view(self.stored.shape)


def laid_out(tensors: Mapping[str, tuple[Stored, torch.dtype]]) -> dict[str, Piece]:
    """The tensors of a layer one after another, each with the dtype that it has in memory."""
    pieces: dict[str, Piece] = {}
    offset = 0
    for name, (stored, dtype) in tensors.items():
        pieces[name] = Piece(stored, dtype, offset)
        offset = -(-pieces[name].end // ALIGNED) * ALIGNED
    return pieces


class Stream:
    """The layers of one model, each at its turn in one of two buffers."""

    def __init__(self, layers: Sequence[Mapping[str, Piece]]) -> None:
        self.layers = layers
        room = max((piece.end for layer in layers for piece in layer.values()), default=0)
        self._buffers = [torch.zeros(room, dtype=torch.uint8) for _ in range(min(2, len(layers)))]
        self._coming: list[tuple[int, Future[None]] | None] = [None] * len(self._buffers)
        self._last, self._goes_up = -1, True
        # Opened once: the layers stay those of the files that were found, whatever replaces them.
        paths = sorted({piece.stored.path for layer in layers for piece in layer.values()})
        self._files = {path: path.open("rb") for path in paths}
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="layers")
        weakref.finalize(self, _close, self._reader, list(self._files.values()))
        self.bytes_read = 0

    @property
    def room(self) -> int:
        """Bytes of both buffers."""
        return sum(len(buffer) for buffer in self._buffers)

    def view(self, number: int, name: str) -> Tensor:
        """A tensor of a layer. Its values are there from `arrive` on, until the layer after the
        next arrives."""
        return self.layers[number][name].view(self._buffers[number % 2])

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is a view of one of the buffers."""
        at, mine = tensor.untyped_storage().data_ptr(), self._buffers
        return any(at == buffer.untyped_storage().data_ptr() for buffer in mine)

    def arrive(self, number: int) -> None:
        """Wait until a layer is in memory, and have the next one read.

        Raises ModelError if its files changed since they were opened, or cannot be read.
        """
        top = len(self.layers) - 1
        if number in (0, top):
            self._goes_up = number < top
        elif number != self._last:
            self._goes_up = number > self._last
        self._last = number
        self._ask_for(number)
        coming = self._coming[number % 2]
        assert coming is not None
        try:
            coming[1].result()
        except (OSError, SafetensorError) as error:
            raise ModelError(f"layer {number} cannot be read: {error}") from None
        follows = number + 1 if self._goes_up else number - 1
        if 0 <= follows < len(self.layers):
            self._ask_for(follows)

    def _ask_for(self, number: int) -> None:
        place = number % 2
        coming = self._coming[place]
        if coming is None or coming[0] != number:
            self._coming[place] = number, self._reader.submit(self._read, number)

    def _read(self, number: int) -> None:
        buffer = self._buffers[number % 2]
        for piece in self.layers[number].values():
            stored, view = piece.stored, piece.view(buffer)
            kind = DTYPES[stored.dtype]
            raw = view if kind == piece.dtype else torch.empty(stored.shape, dtype=kind)
            self._read_bytes(stored, memoryview(raw.view(-1).view(torch.uint8).numpy().data))
            if raw is not view:
                view.copy_(raw)

    def _read_bytes(self, stored: Stored, to: memoryview) -> None:
        file, offset = self._files[stored.path], stored.offset
        self.bytes_read += len(to)
        while len(to):
            count = os.preadv(file.fileno(), [to], offset)
            if not count:
                raise SafetensorError(f"{stored.path}: ends within a tensor")
            to, offset = to[count:], offset + count


def _close(reader: ThreadPoolExecutor, files: Sequence[BinaryIO]) -> None:
    reader.shutdown(wait=True)
    for file in files:
        file.close()


@dataclass(frozen=True)
class Arrival:
    """Brings a layer to memory before its module computes: a forward pre-hook."""

    stream: Stream
    number: int

    def __call__(self, *_: Any) -> None:
        self.stream.arrive(self.number)
