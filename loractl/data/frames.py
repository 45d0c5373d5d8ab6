"""What goes between the process of a run and those that tokenize for it: JSON, and bytes behind it.

Nothing is unpickled. Arrays are sent as they lie in memory; texts, counts and lines as JSON.
"""

import json
import struct
from collections.abc import Sequence
from socket import socket
from typing import Any

import numpy as np

from loractl.data.account import Account
from loractl.data.row_errors import BadRows
from loractl.data.row_files import Row
from loractl.data.store_writer import Packed
from loractl.data.stretch import Part

_HEAD = struct.Struct("<qq")  # bytes of the JSON, bytes of what follows it
_OF_TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".gz")
"""Ends of files whose rows were parsed from JSON or hold texts only: JSON has a form for them."""
Frame = tuple[Any, bytes]


def text_of(value: Any) -> bytes:
    """A value as JSON. Lone surrogates, as in names of files that are not UTF-8, are kept."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def send(to: socket, text: bytes, data: bytes = b"") -> None:
    """Send JSON, and bytes behind it. Raises OSError if nobody is there."""
    to.sendall(_HEAD.pack(len(text), len(data)) + text + data)


def receive(of: socket) -> Frame | None:
    """What was sent; None if the other end is gone."""
    if (head := _read(of, _HEAD.size)) is None:
        return None
    n_text, n_data = _HEAD.unpack(head)
    text, data = _read(of, n_text), _read(of, n_data)
    if text is None or data is None:
        return None
    return _from(text), bytes(data)


def _read(of: socket, count: int) -> bytearray | None:
    data, at = bytearray(count), 0
    with memoryview(data) as view:
        while at < count:
            try:
                found = of.recv_into(view[at:])
            except ConnectionError:
                return None
            if not found:
                return None
            at += found
    return data


def text_of_rows(rows: Sequence[Row], format: str) -> bytes | None:
    """Rows as JSON; None if one holds what JSON has no form for, such as a date of a Parquet file,
    since every row must arrive as it is."""
    plain = [[row.line, row.fields, row.path, row.error] for row in rows]
    try:
        text = text_of([format, plain])
        if not rows[0].path.lower().endswith(_OF_TEXTS) and _from(text) != [format, plain]:
            return None
    except (TypeError, ValueError, RecursionError):
        return None
    return text


def _from(text: bytes | bytearray) -> Any:
    return json.loads(text.decode("utf-8", "surrogatepass"))


def rows_of(value: Any) -> list[Row]:
    return [Row(*one) for one in value]


def of_part(part: Part) -> Frame:
    """A part as a frame."""
    examples = part.examples
    value = {
        "account": part.account.as_dict(),
        "bad": [part.bad.count, part.bad.messages],
        "lengths": part.lengths,
        "kept": [len(tokens) for tokens in examples.tokens],
        "lines": examples.lines,
        "paths": examples.paths,
        "weights": list(examples.weights.items()),
    }
    return value, b"".join(tokens.tobytes() for tokens in examples.tokens)


def part_of(frame: Frame) -> Part:
    """The part that a frame was made of."""
    value, data = frame
    bad = BadRows()
    bad.count, bad.messages = value["bad"]
    tokens = np.frombuffer(data, dtype="<i4")
    ends = np.cumsum(value["kept"], dtype=np.int64)[:-1]
    examples = Packed(
        tokens=np.split(tokens, ends) if value["kept"] else [],
        lines=value["lines"],
        paths=value["paths"],
        weights=dict(value["weights"]),
    )
    return Part(Account.from_dict(value["account"]), bad, value["lengths"], examples)
