"""Tables -> rows, a batch at a time: CSV and TSV with a header, and Parquet."""

import csv
import io
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from loractl.data.row_files import HEAD, Row, open_rows
from loractl.errors import DataError

LONGEST_CELL = 2**31 - 1
"""Characters. The csv module's own limit of 131072 is too low for long texts."""

BATCH = 64
"""Parquet rows converted to Python objects at once."""

BUFFER = 1 << 20
"""Bytes of a Parquet column read at once. Otherwise a whole row group is read: one of 190 MB took
218 MB of memory, and takes 38 MB with this buffer."""


def read_separated(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file, every value as text; names come from its first row.

    A row that cannot be read carries its own error. Raises DataError.
    """
    with open_rows(path) as file:
        delimiter = _find_delimiter(path, file.peek(HEAD))
        # Bytes that are not UTF-8 become lone surrogates, so that they spoil only their own row.
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        csv.field_size_limit(LONGEST_CELL)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if header is None:
                    raise DataError(f"{path}:{line}: {_say_unreadable(error)}") from None
                yield Row(line, {}, str(path), _say_unreadable(error))
                continue
            if len(cells) <= 1 and not "".join(cells).strip():
                continue  # a blank line
            if header is None:
                header = _check_header(path, line, cells)
                continue
            problem = _row_problem(header, cells)
            fields = {} if problem else dict(zip(header, cells, strict=True))
            yield Row(line, fields, str(path), problem)


def _find_delimiter(path: Path, head: bytes) -> str:
    """The header's: spreadsheets in much of Europe write semicolons, some of them into a TSV."""
    is_tsv = path.name.lower().endswith((".tsv", ".tsv.gz"))
    marks = "\t;," if is_tsv else ",;\t"
    header = head.lstrip().splitlines()[:1]
    return next((mark for mark in marks if header and mark.encode() in header[0]), marks[0])


def _check_header(path: Path, line: int, cells: list[str]) -> list[str]:
    names = [name.strip() for name in cells]
    twice = {name for name in names if name and names.count(name) > 1}
    if twice:
        what = f"two columns are named {min(twice)!r}; rename or remove one"
        raise DataError(f"{path}:{line}: {what}")
    if not _is_utf8(names):
        raise DataError(f"{path}:{line}: the header is not UTF-8; convert the file to UTF-8")
    return names


def _row_problem(header: list[str], cells: list[str]) -> str | None:
    """Why a row cannot be read, or None."""
    if len(cells) != len(header):
        columns = f"{len(cells)} column{'s' if len(cells) > 1 else ''}"
        expected = f"expected {len(header)} as in the header; quote cells that contain commas"
        return f"found {columns}, {expected}"
    if not _is_utf8(cells):
        name = next(name for name, cell in zip(header, cells, strict=True) if not _is_utf8([cell]))
        return f"{name or 'a cell'} is not UTF-8; convert the file to UTF-8"
    return None


def _is_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _say_unreadable(error: csv.Error) -> str:
    match str(error):
        case "unexpected end of data":
            return "a quote that opens in this row is never closed"
        case text if "expected after" in text:
            return "text follows a closing quote; inside a quoted cell, write a quote twice"
        case text:
            return f"cannot be read as a row: {text}"


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file, numbered from 1. Raises DataError."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    with open_rows(path):  # reports a bad path, or a clone without its large files
        pass
    try:
        numbers = count(1)
        with ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for fields in batch.to_pylist():
                    yield Row(next(numbers), without_nulls(fields), str(path))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file: {reason}") from None


def without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out the nulls inside the values of a row.

    Arrow gives every object of a column the keys of all of them: a message without `tool_calls`,
    or a tool without some parameter, comes back with a null there, and would be rendered with it.
    """
    return {name: _drop_nulls(value) for name, value in fields.items()}


def _drop_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _drop_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_drop_nulls(inner) for inner in value]
    return value
