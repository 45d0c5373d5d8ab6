"""What the tests of data share: rows, and the kinds of file that hold them."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from tests.tiny import write_jsonl

FLAT: list[dict[str, Any]] = [
    {"instruction": "Add, please.\n1 2", "input": "", "output": "3", "system": "Be short."},
    {"instruction": "Say \"hi\"; then 'ho'", "input": "now", "output": "hi\tho", "system": ""},
]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """As tables hold what is no text: as its JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        for row in rows:
            cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
            writer.writerow(cells)


def write_json(path: Path, rows: list[dict[str, Any]], indent: int | None = 1) -> None:
    path.write_text(json.dumps(rows, indent=indent), "utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\r\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()))


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "a.jsonl": write_jsonl,
    "a.ndjson": write_jsonl,
    "A.JSONL": write_jsonl,
    "a.json": write_json,
    "b.json": write_jsonl,
    "a.jsonl.gz": write_gz,
    "a.json.gz": write_gz,
    "a.csv": write_csv,
    "a.tsv": write_csv,
    "a.parquet": write_parquet,
}
