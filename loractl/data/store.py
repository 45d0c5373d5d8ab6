"""Tokenized examples on disk: a reader that holds only lengths in memory.

A store is a directory of `tokens` (one int32 per token: its id, or ~id if it is not trained),
`index` (where each example begins, and where its row is) and `lengths`, with `account.json` beside
them; and of `weights` (one float32 per token) if some trained token weighs other than 1. It is
published by one rename and verified by its hashes, so a half-written or damaged one is rebuilt,
never read. `store_writer` writes the files.
"""

import hashlib
import json
import os
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from loractl.data.store_writer import ENTRY, WEIGHTS
from loractl.records import UNTRAINED, Example

Lengths = npt.NDArray[np.int32]


class Store(Sequence[Example]):
    """The examples of a finished store, each read when it is asked for."""

    def __init__(self, directory: Path, *, named: bool = False) -> None:
        """`named` gives every example the path of its file, for runs that read several."""
        self.account: dict[str, Any] = json.loads((directory / "account.json").read_text())
        self.lengths: Lengths = np.fromfile(directory / "lengths", dtype="<i4")
        self.named = named or len(self.account["paths"]) > 1
        # Read by pread, not mapped: mapped pages would count as memory of this process.
        self.tokens = _open_until_gone(self, directory / "tokens")
        self.places = _open_until_gone(self, directory / "index")
        weighs = WEIGHTS in self.account["sha256"]
        self.weights = _open_until_gone(self, directory / WEIGHTS) if weighs else None

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Example]: ...
    def __getitem__(self, number: int | slice) -> Example | Sequence[Example]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        first, line, file = self._entry(number)
        data = os.pread(self.tokens, 4 * int(self.lengths[number]), 4 * first)
        values = np.frombuffer(data, dtype="<i4")
        trained = values >= 0
        return Example(
            ids=np.where(trained, values, ~values).tolist(),
            labels=np.where(trained, values, UNTRAINED).tolist(),
            line=line,
            path=self.account["paths"][file] if self.named else "",
            weights=self._weights_of(first, trained),
        )

    def _weights_of(self, first: int, trained: npt.NDArray[np.bool_]) -> list[float] | None:
        """The weights of the example from token `first` on; None if all trained ones are 1."""
        if self.weights is None:
            return None
        data = os.pread(self.weights, 4 * len(trained), 4 * first)
        weights = np.where(trained, np.frombuffer(data, dtype="<f4"), 0.0)
        found: list[float] = weights.tolist()
        return None if (weights[trained] == 1.0).all() else found

    def _entry(self, number: int) -> tuple[int, int, int]:
        """First token, line and number of the file of an example."""
        entry = os.pread(self.places, ENTRY.size, number * ENTRY.size)
        first, line, file = ENTRY.unpack(entry)
        return first, line, file

    def where(self, number: int) -> str:
        """The file and line of an example, whether or not the examples are named."""
        _, line, file = self._entry(number)
        return f"{self.account['paths'][file]}:{line}"

    def blocks(self, size: int = 1 << 20) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
        """All ids in order, `size` at a time: (the number of the first one, ids)."""
        total = int(self.lengths.sum())
        for first in range(0, total, size):
            data = os.pread(self.tokens, 4 * min(size, total - first), 4 * first)
            values = np.frombuffer(data, dtype="<i4")
            yield first, np.where(values >= 0, values, ~values)


def _open_until_gone(owner: object, path: Path) -> int:
    """A file descriptor that is closed when its owner is garbage-collected."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    weakref.finalize(owner, os.close, descriptor)
    return descriptor


class Mixture(Sequence[Example]):
    """Several stores one after another; `batches` decides how often an epoch uses each."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = stores
        self.starts = [0, *accumulate(len(store) for store in stores)]
        self.lengths: Lengths = np.concatenate([store.lengths for store in stores])

    def __len__(self) -> int:
        return self.starts[-1]

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Example]: ...
    def __getitem__(self, number: int | slice) -> Example | Sequence[Example]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        part = bisect_right(self.starts, number) - 1
        return self.stores[part][number - self.starts[part]]


def tokens_sha256(stores: Sequence[Store]) -> str:
    """A hash of the tokens of stores, computed from the file hashes in their accounts."""
    found = hashlib.sha256()
    for store in stores:
        for name in ("tokens", "lengths", WEIGHTS):
            found.update(store.account["sha256"].get(name, "").encode())
    return found.hexdigest()


def have_weights(examples: Sequence[Example]) -> bool:
    """Whether some trained token of the examples weighs other than 1."""
    if isinstance(examples, Mixture):
        return any(have_weights(store) for store in examples.stores)
    if isinstance(examples, Store):
        return examples.weights is not None
    return any(example.weights is not None for example in examples)


def lengths_of(examples: Sequence[Example]) -> Lengths:
    """The number of tokens of each example, without reading the tokens in a store."""
    if isinstance(examples, Store | Mixture):
        return examples.lengths
    return np.array([len(example.ids) for example in examples], dtype=np.int32)
