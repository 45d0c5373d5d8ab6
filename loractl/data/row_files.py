"""Opens a file of rows, plain or gzipped, and says why one cannot be read.

Its contents are parsed by `json_files` and `tables`.
"""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loractl.errors import DataError

BOM = b"\xef\xbb\xbf"
HEAD = 8192  # bytes that `peek` gives, unless the file is shorter


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row: its fields, or the error that kept them from being read, and its location."""

    line: int  # 1-based line on which it begins; in formats without lines, its number
    fields: dict[str, Any]
    path: str  # the file it is in, or the id of its hub dataset
    error: str | None = None


@contextmanager
def open_rows(path: Path) -> Iterator[io.BufferedReader | gzip.GzipFile]:
    """Open a file for reading bytes, unpacked if gzipped, after any UTF-8 byte-order mark.

    Gzip is recognized by the first bytes, not the name. Raises DataError, also for faults that
    come up during reading.
    """
    try:
        with path.open("rb") as plain:
            head = plain.peek(HEAD)
            if head.startswith(b"version https://git-lfs"):
                raise DataError(
                    f"{path}: a Git LFS pointer, not the file itself; run git lfs pull in its clone"
                )
            if not head.startswith(b"\x1f\x8b"):
                _skip_mark_(path, plain)
                yield plain
                return
            with gzip.GzipFile(fileobj=plain) as unpacked:
                _skip_mark_(path, unpacked)
                yield unpacked
    except FileNotFoundError:
        raise missing_file(path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path}: the gzip data is cut off or corrupt; download it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _skip_mark_(path: Path, file: io.BufferedReader | gzip.GzipFile) -> None:
    head = file.peek(HEAD)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: found UTF-16, expected UTF-8; convert the file to UTF-8")
    if head.startswith(BOM):
        file.read(len(BOM))


def missing_file(path: Path) -> DataError:
    """The error for a path that does not exist."""
    resolved = "" if path.is_absolute() else f" (resolved to {os.path.abspath(path)})"
    return DataError(f"{path}: does not exist{resolved}")
