"""Writes the files of a store (see store.py): examples packed into arrays, and their hashes."""

import hashlib
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loractl.records import UNTRAINED

FILES = ("tokens", "index", "lengths")
WEIGHTS = "weights"  # the file that only some stores have
ONES = 1_000_000  # weights written at a time
ENTRY = struct.Struct("<qqq")  # first token, line, number of the file


@dataclass
class Packed:
    """Examples in the order of their rows, as a store holds them."""

    tokens: list[npt.NDArray[np.int32]] = field(default_factory=list)  # ids, ~id if not trained
    lines: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    weights: dict[int, list[float]] = field(default_factory=dict)  # by the number of the example

    def add(
        self,
        ids: list[int],
        labels: list[int],
        path: str,
        line: int,
        weights: list[float] | None = None,
    ) -> None:
        """Add one example; its row is on `line` of `path`."""
        values = np.array(ids, dtype="<i4")
        values[np.array(labels) == UNTRAINED] ^= -1  # ~id
        if weights is not None:
            self.weights[len(self.tokens)] = weights
        self.tokens.append(values)
        self.lines.append(line)
        self.paths.append(path)


class Writer:
    """Appends examples to a store that is being made; none of them are held in memory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = {name: (directory / name).open("wb") for name in FILES}
        self.hashes = {name: hashlib.sha256() for name in FILES}
        self.n_tokens = 0
        self.paths: list[str] = []

    def append(
        self,
        ids: list[int],
        labels: list[int],
        path: str,
        line: int,
        *,
        weights: list[float] | None = None,
    ) -> None:
        """Add one example; its row is on `line` of `path`."""
        packed = Packed()
        packed.add(ids, labels, path, line, weights)
        self.extend(packed)

    def extend(self, packed: Packed) -> None:
        """Add examples."""
        lengths = [len(values) for values in packed.tokens]
        index, first = [], self.n_tokens
        for length, line, path in zip(lengths, packed.lines, packed.paths, strict=True):
            if not self.paths or self.paths[-1] != path:
                self.paths.append(path)
            index.append(ENTRY.pack(first, line, len(self.paths) - 1))
            first += length
        self._write_hashed("tokens", b"".join(values.tobytes() for values in packed.tokens))
        self._write_hashed("index", b"".join(index))
        self._write_hashed("lengths", np.array(lengths, dtype="<i4").tobytes())
        for number, length in enumerate(lengths):
            self._append_weights(packed.weights.get(number), length)
            self.n_tokens += length

    def _append_weights(self, weights: list[float] | None, count: int) -> None:
        """The file begins with the first weight that is neither 0 nor 1; before it all weigh 1."""
        if WEIGHTS not in self.files:
            if weights is None or set(weights) <= {0.0, 1.0}:
                return
            self.files[WEIGHTS] = (self.directory / WEIGHTS).open("wb")
            self.hashes[WEIGHTS] = hashlib.sha256()
            for start in range(0, self.n_tokens, ONES):
                self._write_ones(min(ONES, self.n_tokens - start))
        if weights is None:
            self._write_ones(count)
        else:
            self._write_hashed(WEIGHTS, np.array(weights, dtype="<f4").tobytes())

    def _write_ones(self, count: int) -> None:
        self._write_hashed(WEIGHTS, np.ones(count, dtype="<f4").tobytes())

    def _write_hashed(self, name: str, data: bytes) -> None:
        self.files[name].write(data)
        self.hashes[name].update(data)

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def finish(self) -> dict[str, Any]:
        """Flush the files to disk; return what `account.json` must record about them."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        return {
            "paths": self.paths,
            "sha256": {name: found.hexdigest() for name, found in self.hashes.items()},
        }
