"""Sources: the same rows from every kind of file, what is no source, and what reading costs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loractl.data import rows as formats
from loractl.data.sources import Row, fingerprint, read
from loractl.errors import DataError
from loractl.records import Conversation
from tests.data.conftest import FLAT, WRITERS
from tests.tiny import write_jsonl

CHAT: list[dict[str, Any]] = [
    {
        "id": 7,
        "messages": [
            {"role": "user", "content": "東京 مرحبا 😀, \u2028?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": [1]}'}}],
            },
            {"role": "tool", "content": "1", "name": "f"},
            {"role": "assistant", "content": "one", "train": False},
        ],
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"a": {"type": "string"}}}}
        ],
    },
    {"id": 8, "messages": [{"role": "user", "content": "a\r\nb"}]},
]


def conversations(source: Path | str) -> list[Conversation]:
    found = []
    for row in read(source):
        assert row.error is None
        found.append(formats.FORMATS[formats.detect(row.fields)](row.fields))
    return found


@pytest.mark.parametrize("rows", [CHAT, FLAT], ids=["messages", "alpaca"])
def test_the_same_rows_are_the_same_conversations_in_every_kind_of_file(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    want = [formats.FORMATS[formats.detect(row)](row) for row in rows]
    for name, write in WRITERS.items():
        write(tmp_path / name, rows)
        assert conversations(tmp_path / name) == want, name
        assert {row.path for row in read(str(tmp_path / name))} == {str(tmp_path / name)}


def test_a_row_says_where_it_stands(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", FLAT)
    assert list(read(path)) == [Row(i, row, str(path)) for i, row in enumerate(FLAT, 1)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ""),
        ("a.jsonl", "\n \r\n\n"),
        ("a.jsonl", "\ufeff"),
        ("a.json", " [ ] "),
        ("a.json", ""),
        ("a.csv", "a,b\n"),
        ("a.csv", ""),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"^{tmp_path / name}: found no rows"):
        list(read(tmp_path / name))


@pytest.mark.parametrize("ask", [lambda source: list(read(source)), fingerprint])
def test_what_is_no_source_is_refused_by_name(tmp_path: Path, ask: Callable[[Path], Any]) -> None:
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "rows").write_text("x")
    (tmp_path / "a.parquet.gz").write_text("x")
    for name, words in (
        ("rows.txt", "found .txt, expected .jsonl, .*.parquet or a directory"),
        ("rows", "found no file extension, expected"),
        ("a.parquet.gz", "found .gz, expected"),
        ("absent.jsonl", "does not exist"),
    ):
        with pytest.raises(DataError, match=f"^{tmp_path / name}: {words}"):
            ask(tmp_path / name)


def test_a_relative_path_that_is_missing_is_shown_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"^a.jsonl: does not exist \(resolved to {tmp_path}/a"):
        list(read("a.jsonl"))


def test_a_split_of_a_single_file_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", FLAT)
    assert len(list(read(path, "train"))) == 2
    with pytest.raises(DataError, match="no split test, a file has no splits"):
        list(read(path, "test"))


# What it costs

MEASURE = """
import resource, sys
from pathlib import Path
from loractl.data import rows, sources
from loractl.records import Conversation
n = 0
for row in sources.read(sys.argv[1]):
    n += sources.held_out(rows.messages(row.fields), 0.5)
sources.fingerprint(sys.argv[1])
heavy = sorted({"torch", "transformers", "datasets", "pyarrow", "numpy"} & set(sys.modules))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, *heavy)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_sixty_megabytes_take_no_more_memory_than_ten_rows(tmp_path: Path, name: str) -> None:
    row = {"messages": [{"role": "user", "content": "é" * 500}] * 8, "id": "x" * 10_000}

    def peak(n: int) -> int:
        text = json.dumps(row, ensure_ascii=False)
        between, ends = ("\n", ("", "\n")) if name == "a.jsonl" else (",\n", ("[", "]"))
        path = tmp_path / name
        with path.open("w", encoding="utf-8") as file:
            file.write(ends[0] + text)
            file.writelines(between + text for _ in range(n - 1))
            file.write(ends[1])
        assert n == 10 or path.stat().st_size > 60 << 20
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path)], capture_output=True, check=True, text=True
        )
        megabytes, *heavy = done.stdout.split()
        assert heavy == []
        return int(megabytes)

    assert peak(3500) - peak(10) < 20
