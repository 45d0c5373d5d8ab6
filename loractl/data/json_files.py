"""JSON -> rows, streamed: JSON lines, an array, or {"data": an array}.

A fault within one row is that row's error; one that makes the rest unreadable raises DataError.
"""

import codecs
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loractl.data.json_text import HALF, RepeatedError, half_character, strict_object
from loractl.data.row_files import HEAD, Row, open_rows
from loractl.errors import DataError

CHUNK = 1 << 18
"""Characters of an array read at once."""

LONGEST_TOKEN = 16
"""A fault this close to the end of the text read may be a cut token: -Infinity, \\ud83d\\ude00."""

_WRAPPED = re.compile(
    rb'\s*\{\s*(?:"\w+"\s*:\s*(?:"[^"\\]*"|[-+.\w]+)\s*,\s*)*"data"\s*:\s*\[\s*\{'
)
"""{"data": [{..., with only plain values before it. A row of JSON lines may have a field named data
too, so a .jsonl file is never taken for this."""

_SPACE = re.compile(r"[ \t\r\n]*")

# NaN and Infinity, which Python's json writes, are accepted: a format that expects text refuses
# them, and elsewhere they do no harm.
_STRICT = json.JSONDecoder(object_pairs_hook=strict_object)
_PLAIN = json.JSONDecoder()


def read(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON file. Raises DataError.

    The layout is detected from its first bytes, since some arrays are named .jsonl and some JSON
    lines .json.
    """
    with open_rows(path) as file:
        head = file.peek(HEAD)
        if head.lstrip()[:1] == b"[":
            yield from _read_array(_Values(path, file))
        elif path.name.lower().endswith((".json", ".json.gz")) and _WRAPPED.match(head):
            yield from _read_wrapped(_Values(path, file))
        else:
            yield from _read_lines(path, file)


def _read_lines(path: Path, file: io.BufferedReader | gzip.GzipFile) -> Iterator[Row]:
    first = True
    for number, raw in enumerate(file, 1):
        if not (stripped := raw.strip()):
            continue
        if first and stripped == b"{":
            raise DataError(
                f"{path}:{number}: not JSON lines, which have one object per line; convert it with"
                ' jq -c ., or write one JSON array or, in a .json file, {"data": [rows]}'
            )
        first = False
        fields, error = _parse_line(raw)
        yield Row(number, fields, str(path), error)


def _parse_line(raw: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        text = raw.decode("utf-8")
        value = _STRICT.decode(text)
    except UnicodeDecodeError as error:
        return {}, f"byte {error.start + 1} is not UTF-8; convert the file to UTF-8"
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        return {}, f"not valid JSON: {what} at column {error.colno}{_carriage_hint(error)}"
    except RepeatedError as error:
        return {}, str(error)
    except (RecursionError, ValueError) as error:
        return {}, _say_unreadable(error)
    return _check_fields(value, escaped=HALF.search(text) is not None)


def _carriage_hint(error: json.JSONDecodeError) -> str:
    """A hint for a file whose lines end in a lone CR."""
    alone = error.msg == "Extra data" and error.doc[error.pos - 1] == "\r"
    return "; the lines end in CR only, save the file with LF" if alone else ""


def _say_unreadable(error: RecursionError | ValueError) -> str:
    """Reword json's errors for nesting too deep for the stack and numbers past Python's limit."""
    deep = isinstance(error, RecursionError)
    return f"not valid JSON: {'nested too deeply' if deep else str(error).split(';')[0]}"


def _check_fields(value: Any, *, escaped: bool) -> tuple[dict[str, Any], str | None]:
    """The fields of a row, or why it has none; `escaped`: a \\u escape may be half a character."""
    if not isinstance(value, dict):
        found = "null" if value is None else type(value).__name__
        return {}, f"found {found}, expected a JSON object"
    if escaped and (wrong := half_character(value)):  # only an escape can yield one
        return {}, wrong
    return value, None


class _Values:
    """Reads JSON values one after another, holding no more than one value and one chunk."""

    def __init__(self, path: Path, file: io.BufferedReader | gzip.GzipFile) -> None:
        self.path, self.file = path, file
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.at, self.ended = "", 0, False
        self.lines, self.counted = 1, 0  # the line of text[counted]

    def line(self) -> int:
        """The line reached so far."""
        self.lines += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        return self.lines

    def next(self) -> str:
        """Skip whitespace; return the character after it, or "" at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None, "the pattern also matches the empty string"
            self.at = match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read_more():
                return ""

    def expect(self, char: str) -> None:
        """Skip this one character. Raises DataError if another one is there."""
        if (found := self.next()) != char:
            what = f"found {found!r}" if found else "the file ends"
            raise self.broken(f"{what}, expected {char!r}")
        self.at += 1

    def value(self) -> tuple[Any, str | None]:
        """Read a value; return it with an error if it is bad but the rest can still be read.

        Raises DataError if the rest cannot be read either.
        """
        self.next()
        decoder, problem = _STRICT, None
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string")
                cut = cut or error.pos + LONGEST_TOKEN > len(self.text)
                if cut and self._read_more():
                    continue
                self.line()
                self.at = min(error.pos, len(self.text))
                raise self.broken(error.msg.removesuffix(" at")) from None
            except RepeatedError as error:  # read it again, to find where it ends
                decoder, problem = _PLAIN, str(error)
            except (RecursionError, ValueError) as error:
                raise DataError(f"{self.path}:{self.line()}: {_say_unreadable(error)}") from None
            else:
                if end + LONGEST_TOKEN > len(self.text) and self._read_more():
                    continue  # a number may continue
                if problem is None and HALF.search(self.text, self.at, end):
                    problem = _check_fields(value, escaped=True)[1]
                self.at = end
                return value, problem

    def broken(self, what: str) -> DataError:
        """The error for the position reached so far."""
        return DataError(f"{self.path}:{self.line()}: not valid JSON: {what}")

    def _read_more(self) -> bool:
        """Drop the text already passed and read on; return whether there was more."""
        if self.ended:
            return False
        self.line()
        rest = self.text[self.at :]
        # A value longer than a chunk is parsed again with each chunk: doubling the amount each
        # time keeps the total below two more readings.
        raw = self.file.read(max(CHUNK, len(rest)))
        self.ended = not raw
        try:
            self.text = rest + self.decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.lines + rest.count("\n") + error.object[: error.start].count(b"\n")
            found = f"the byte {error.object[error.start]:#04x} is not UTF-8"
            raise DataError(f"{self.path}:{line}: {found}; convert the file to UTF-8") from None
        self.at = self.counted = 0
        return True


def _read_array(values: _Values) -> Iterator[Row]:
    """The rows of an array, after which the file must end."""
    yield from _read_items(values)
    if values.next():
        raise values.broken("Extra data after the array")


def _read_items(values: _Values) -> Iterator[Row]:
    values.expect("[")
    if values.next() != "]":
        while True:
            values.next()
            line = values.line()
            value, error = values.value()
            fields: dict[str, Any] = {}
            if error is None:
                fields, error = _check_fields(value, escaped=False)
            yield Row(line, fields, str(values.path), error)
            if values.next() != ",":
                break
            values.expect(",")
    values.expect("]")


def _read_wrapped(values: _Values) -> Iterator[Row]:
    """The rows in the field data of an object; its other fields are skipped."""
    values.expect("{")
    while True:
        key, _ = values.value()
        values.expect(":")
        if key == "data":
            yield from _read_items(values)
        else:
            values.value()
        if values.next() != ",":
            break
        values.expect(",")
    values.expect("}")
    if values.next():
        raise values.broken('Extra data after the object {"data": [...]}')
