"""Tokenized examples on disk: the cache of them, and a reader that holds only lengths in memory.

A store is a directory of `tokens` (one int32 per token: its id, or ~id if it is not trained),
`index` (where each example begins, and where its row is) and `lengths`, with `account.json` beside
them; and of `weights` (one float32 per token) if some trained token weighs other than 1. It is
published by one rename and verified by its hashes, so a half-written or damaged one is rebuilt,
never read. `store_writer` writes the files.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from loractl import leftovers
from loractl.data.store_writer import ENTRY, FILES, WEIGHTS, Writer
from loractl.digests import file_sha256
from loractl.errors import StorageError
from loractl.paths import cache_home
from loractl.records import UNTRAINED, Example

UNUSED_DAYS = 30
KEY_LENGTH = 32
_STORE = re.compile(rf"\.?[0-9a-f]{{{KEY_LENGTH}}}(-.*)?")
"""A store by its key, or an unfinished one of an older version."""

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
        entry = os.pread(self.places, ENTRY.size, number * ENTRY.size)
        first, line, file = ENTRY.unpack(entry)
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


@dataclass(frozen=True)
class Cache:
    """The directory where stores are kept between runs, keyed by all that went into them."""

    root: Path

    @staticmethod
    def default() -> "Cache":
        """The token cache of this user."""
        return Cache(cache_home() / "tokens")

    def open(self, key: str, make: Callable[[Writer], dict[str, Any]]) -> Path:
        """The directory of the store with this key, built by `make` if there is no complete one.

        `make` appends to the writer and returns the content of account.json. Raises StorageError
        if the cache cannot be written.
        """
        place = self.root / key[:KEY_LENGTH]
        if is_whole(place):
            with contextlib.suppress(OSError):
                os.utime(place)
            return place
        with self._working_beside(place) as working:
            with contextlib.closing(Writer(working)) as writer:
                account = make(writer)
                account |= writer.finish()
            (working / "account.json").write_text(json.dumps(account))
            shutil.rmtree(place, ignore_errors=True)
            try:
                os.rename(working, place)
            except OSError:
                # Another run made the same store meanwhile, or the cache is not writable.
                if not is_whole(place):
                    raise StorageError(f"{place}: the token cache cannot be written") from None
        return place

    @contextlib.contextmanager
    def _working_beside(self, place: Path) -> Iterator[Path]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._forget_unused()
            working = Path(mkdtemp(prefix=leftovers.MAKING, dir=self.root))
        except OSError as error:
            raise StorageError(
                f"{self.root}: the token cache cannot be written: {error.strerror}; set"
                " LORACTL_CACHE to a writable directory"
            ) from None
        try:
            yield working
        except OSError as error:
            raise StorageError(
                f"{working}: the token cache cannot be written: {error.strerror}; set LORACTL_CACHE"
                " to a directory with more space"
            ) from None
        finally:
            shutil.rmtree(working, ignore_errors=True)

    def _forget_unused(self) -> None:
        """Remove stores that no run has opened for a month, and leftovers of killed runs."""
        leftovers.sweep_cache(self.root)
        for entry in self.root.iterdir():
            is_old = time.time() - entry.stat().st_mtime > UNUSED_DAYS * 86400
            if is_old and _STORE.fullmatch(entry.name):  # nothing else kept here
                shutil.rmtree(entry, ignore_errors=True)


def is_whole(directory: Path) -> bool:
    """Whether a store is complete and its files are as they were written."""
    try:
        account = json.loads((directory / "account.json").read_text())
        names = {*FILES, *account["sha256"]}
        return all(file_sha256(directory / name) == account["sha256"][name] for name in names)
    except (OSError, ValueError, KeyError, TypeError):
        return False
