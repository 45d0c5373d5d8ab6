"""The stores kept between runs: each is published by one rename, and verified before it is used."""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from loractl import leftovers
from loractl.data.store_writer import FILES, Writer
from loractl.digests import file_sha256
from loractl.errors import StorageError
from loractl.paths import cache_home

UNUSED_DAYS = 30
KEY_LENGTH = 32
_STORE = re.compile(rf"\.?[0-9a-f]{{{KEY_LENGTH}}}(-.*)?")
"""A store by its key, or an unfinished one of an older version."""


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
