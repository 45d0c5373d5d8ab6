"""A path -> rows with the line each stands on: JSON lines, or one JSON array."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loractl.errors import DataError


@dataclass(frozen=True)
class Row:
    """One raw row: the 1-based line on which it begins, and its fields."""

    line: int
    fields: dict[str, Any]


def read(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON-lines file or of a JSON array.

    A byte-order mark, CRLF and blank lines are skipped. Raises DataError with the line of the first
    fault, and for a file without rows.
    """
    if path.is_dir():
        raise DataError(f"{path}: a directory, expected a .jsonl or .json file")
    if path.suffix not in (".jsonl", ".json", ".ndjson"):
        raise DataError(
            f"{path}: reading {path.suffix or 'such'} files is not available in this version;"
            f" .jsonl or .json is"
        )
    found = False
    for row in _items(path) if _is_array(path) else _lines(path):
        found = True
        yield row
    if not found:
        raise DataError(f"{path}: no examples, the file is empty")


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield Row(number, _object(path, number, raw))


def _object(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: byte {error.start + 1} is not UTF-8; convert the file to UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{number}: not valid JSON: {error.msg} at column {error.colno}"
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}:{number}: {_unreadable(error)}") from None
    return _mapping(path, number, value, escapes="\\u" in text)


def _unreadable(error: RecursionError | ValueError) -> str:
    """Word what json raises for nesting beyond the stack and numbers beyond Python's limit."""
    deep = isinstance(error, RecursionError)
    return f"not valid JSON: {'nested too deep' if deep else str(error).split(';')[0]}"


def _mapping(path: Path, number: int, value: Any, *, escapes: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}:{number}: found {type(value).__name__}, expected a JSON object")
    if (
        escapes
    ):  # only an escape can bring a surrogate without its other half, which no tokenizer takes
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{path}:{number}: a \\u escape is half a character (a lone surrogate); remove it"
            ) from None
    return value


def _items(path: Path) -> Iterator[Row]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        json.loads(text)  # so that what follows need not look for faults
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: {_unreadable(error)}") from None
    decoder, line, counted = json.JSONDecoder(), 1, 0
    at = _next(text, text.index("[") + 1)
    while text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        item, at = decoder.raw_decode(text, at)
        yield Row(line, _mapping(path, line, item, escapes="\\u" in text[counted:at]))
        at = _next(text, at)


def _next(text: str, at: int) -> int:
    """Where the next item of an array begins, or the array ends."""
    while text[at] in " \t\r\n,":
        at += 1
    return at


def split(rows: list[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """Split rows into (train, held out) by their content's hash: duplicates stay together."""
    train: list[Row] = []
    held_out: list[Row] = []
    for row in rows:
        content = json.dumps(row.fields, sort_keys=True, ensure_ascii=False).encode()
        share = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
        (held_out if share < fraction else train).append(row)
    return train, held_out


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
