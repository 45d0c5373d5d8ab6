"""Opening a file of rows: plain or gzipped, and what is wrong with one that cannot be read.

What stands in it is read by `json_files` and `tables`.
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
HEAD = 8192  # bytes; what `peek` gives of a file that is not shorter


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row: its fields, or the error that keeps it from having any, and where it stands."""

    line: int  # 1-based line on which it begins; of formats without lines, its number
    fields: dict[str, Any]
    path: str  # file in which it stands, or id of a hub data set
    error: str | None = None


@contextmanager
def open_rows(path: Path) -> Iterator[io.BufferedReader | gzip.GzipFile]:
    """Open a file for reading bytes, unpacked if gzipped, after its UTF-8 byte-order mark.

    Whether it is gzipped is seen from its first bytes, not its name. Raises DataError, for faults
    that come up while it is read too.
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
    """The error about a path where nothing is."""
    resolved = "" if path.is_absolute() else f" (resolved to {os.path.abspath(path)})"
    return DataError(f"{path}: does not exist{resolved}")
