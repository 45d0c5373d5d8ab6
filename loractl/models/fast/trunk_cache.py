"""A cache of the output of the frozen layers below the lowest adapter, computed once per example.

Each example is computed alone, so its values do not depend on what it is packed with, on the epoch,
or on where a run was stopped: a resumed run gets the same bytes as an uninterrupted one. The file
has no name: it disappears with the process, however that ends.
"""

import os
import tempfile
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loractl.records import Batch


class TrunkCache:
    """Hidden states before layer number `layers`, of all examples, in one file on disk."""

    def __init__(
        self, lengths: Iterable[int], *, layers: int, hidden: int, dtype: torch.dtype, room: Path
    ) -> None:
        """`lengths` are the tokens per example; `room` is the directory of the file."""
        self.layers = layers
        self._width, self._dtype = hidden, dtype
        self._starts = np.cumsum([0, *lengths], dtype=np.int64)
        self._known = np.zeros(len(self._starts) - 1, dtype=bool)
        file = tempfile.TemporaryFile(dir=room)  # noqa: SIM115
        weakref.finalize(self, file.close)
        self._file = file
        self._bytes_a_token = hidden * dtype.itemsize

    @property
    def n_bytes(self) -> int:
        """Bytes on disk once every example is cached."""
        return n_bytes(int(self._starts[-1]), self._width, self._dtype)

    def fetch(self, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """The hidden states (1, tokens, hidden) of a batch without padding.

        `compute` gives those of a batch of one example, (1, tokens, hidden).
        """
        found = torch.empty(batch.n_tokens, self._width, dtype=self._dtype)
        start = 0
        for example in batch.examples:
            stop = start + int(self._starts[example + 1] - self._starts[example])
            if self._known[example]:
                self._read(example, found[start:stop])
            else:
                with torch.no_grad():
                    found[start:stop] = compute(_alone(batch, start, stop))[0]
                self._write(example, found[start:stop])
            start = stop
        assert start == batch.n_tokens, (start, batch.n_tokens)
        return found[None].to(batch.input_ids.device)

    def _write(self, example: int, rows: Tensor) -> None:
        data, offset = _as_bytes(rows), self._offset(example)
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[written:], offset + written
        except OSError:  # a full disk: it is computed again next time
            return
        self._known[example] = True

    def _read(self, example: int, into: Tensor) -> None:
        target = _as_bytes(into)
        read = os.preadv(self._file.fileno(), [target], self._offset(example))
        assert read == target.nbytes, (read, target.nbytes)

    def _offset(self, example: int) -> int:
        return int(self._starts[example]) * self._bytes_a_token


def n_bytes(tokens: int, hidden: int, dtype: torch.dtype) -> int:
    return tokens * hidden * dtype.itemsize


def _as_bytes(rows: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, shared with it."""
    return rows.view(torch.uint8).numpy().data.cast("B")


def _alone(batch: Batch, start: int, stop: int) -> Batch:
    """One example of a batch without padding as a batch of its own."""
    return replace(
        batch.with_each(lambda one: one[:, start:stop]),
        n_tokens=stop - start,
        sizes=(stop - start,),
        examples=(),
    )
