"""Sources: the same rows from every kind of file and directory, their hashes, who is held out."""

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from loractl.data import rows as formats
from loractl.data import sources
from loractl.data.sources import Row, file_hash, fingerprint, held_out, read
from loractl.errors import DataError
from loractl.paths import is_hub_data
from loractl.records import Conversation, Message
from tests.conftest import write_jsonl

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


# Directories


def test_a_directory_is_read_file_by_file_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_csv(tmp_path / "b.csv", FLAT)
    write_jsonl(tmp_path / "a.jsonl", FLAT[:1])
    write_parquet(tmp_path / "c.parquet", FLAT[1:])
    for other in (".hidden.jsonl", "_metadata.parquet", "README.md", "dataset_infos.json"):
        (tmp_path / other).write_text("{}")
    (tmp_path / "d.jsonl").mkdir()
    found = [(Path(row.path).name, row.fields) for row in read(tmp_path)]
    assert found == [
        ("a.jsonl", FLAT[0]),
        ("b.csv", FLAT[0]),
        ("b.csv", FLAT[1]),
        ("c.parquet", FLAT[1]),
    ]


def test_a_clone_from_the_hub_is_read_from_its_data_folder_by_split(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "README.md").write_text("---\n---\n")
    write_parquet(data / "train-00000-of-00002.parquet", FLAT[:1])
    write_parquet(data / "train-00001-of-00002.parquet", FLAT[1:])
    write_parquet(data / "test-00000-of-00001.parquet", FLAT[1:])
    assert [row.fields for row in read(tmp_path)] == FLAT
    assert [row.fields for row in read(tmp_path, "train")] == FLAT
    assert [row.fields for row in read(tmp_path, "test")] == FLAT[1:]
    with pytest.raises(DataError, match="no split dev, found files of test, train; set split"):
        list(read(tmp_path, "dev"))


def test_files_named_after_splits_are_told_apart_and_a_doubtful_one_is_refused(
    tmp_path: Path,
) -> None:
    write_jsonl(tmp_path / "my_train.jsonl", FLAT)
    write_jsonl(tmp_path / "my-val.jsonl", FLAT[:1])
    assert len(list(read(tmp_path))) == 2
    for name in ("validation", "valid", "dev"):
        assert len(list(read(tmp_path, name))) == 1
    write_jsonl(tmp_path / "more.jsonl", FLAT)
    with pytest.raises(DataError, match="unlike the other files, more.jsonl names no split"):
        list(read(tmp_path))


def test_a_directory_without_training_files_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", FLAT)
    with pytest.raises(DataError, match="no split train, found files of test; set split"):
        list(read(tmp_path))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("train_sft-00000-of-00003.parquet", "train_sft"),
        ("dev-00000-of-00001.parquet", "validation"),
        ("gsm8k_test.jsonl", "test"),
        ("train2.csv", "train"),
        ("training.csv", "train"),
        ("strained.csv", None),
        ("rows.csv", None),
    ],
)
def test_the_name_of_a_file_tells_its_split(name: str, split: str | None) -> None:
    assert sources.split_of(name) == split


def test_a_directory_without_rows_is_refused_with_the_folders_in_it(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    (tmp_path / "socratic").mkdir()
    with pytest.raises(DataError, match="no data files in it .*folders main, socratic: use one"):
        list(read(tmp_path))
    (tmp_path / "main" / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="found no rows"):
        list(read(tmp_path / "main"))


def test_what_save_to_disk_wrote_is_a_source(tmp_path: Path) -> None:
    datasets.Dataset.from_list(FLAT).save_to_disk(str(tmp_path / "a"))
    assert [row.fields for row in read(tmp_path / "a")] == FLAT


# The hub


def test_what_is_no_path_but_has_the_form_of_an_id_is_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = datasets.Dataset.from_list(FLAT)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found.to_iterable_dataset())
    assert list(read("owner/name")) == [Row(i, row, "owner/name") for i, row in enumerate(FLAT, 1)]
    (tmp_path / "owner" / "name").mkdir(parents=True)
    write_jsonl(tmp_path / "owner" / "name" / "a.jsonl", FLAT[:1])
    assert not is_hub_data("owner/name") and sources.exists("owner/name")
    assert [row.path for row in read("owner/name")] == ["owner/name/a.jsonl"]


def test_a_misspelt_file_is_no_id_of_the_hub() -> None:
    assert is_hub_data("owner/name") and is_hub_data("owner/name:main") and is_hub_data("o/n-v1.0")
    wrong = ("data/a.jsonl", "data/a.CSV", "data/a.json.gz", "data/a.txt", "./a/b", "/a/b", "a")
    assert not any(map(is_hub_data, wrong))


def test_the_fingerprint_of_a_data_set_on_the_hub_is_that_of_its_revision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builder = datasets.Dataset.from_list(FLAT)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: builder)
    prints = set()
    for builder.hash in ("abc", "def"):
        for name, split in (("a/b", None), ("a/b", "test"), ("a/b:c", "test")):
            prints.add(fingerprint(name, split))
        assert fingerprint("a/b") == fingerprint("a/b", "train")
    assert len(prints) == 6


# Hashes


def test_the_fingerprint_of_a_file_is_the_hash_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert fingerprint(path) == file_hash(path)
    assert file_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_fingerprint_of_a_directory_is_of_what_is_read_in_it(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", FLAT)
    write_jsonl(tmp_path / "test.jsonl", FLAT)
    first, of_test = fingerprint(tmp_path), fingerprint(tmp_path, "test")
    (tmp_path / "README.md").write_text("x")
    write_jsonl(tmp_path / "test.jsonl", FLAT[:1])
    assert fingerprint(tmp_path) == first and fingerprint(tmp_path, "test") != of_test
    (tmp_path / "train.jsonl").rename(tmp_path / "train2.jsonl")
    assert fingerprint(tmp_path) != first
    (tmp_path / "train2.jsonl").rename(tmp_path / "train.jsonl")
    assert fingerprint(tmp_path) == first
    write_jsonl(tmp_path / "train.jsonl", FLAT[:1])
    assert fingerprint(tmp_path) != first


def test_the_fingerprint_of_a_saved_data_set_is_of_all_its_files(tmp_path: Path) -> None:
    prints = set()
    for rows in (FLAT, FLAT[:1]):
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "a"))
        prints.add(fingerprint(tmp_path / "a"))
    assert len(prints) == 2


# Who is held out

MANY = [
    Conversation((Message("user", f"{i}?"), Message("assistant", f"{i * i}."))) for i in range(1000)
]


def test_a_share_of_the_conversations_is_held_out_and_a_larger_share_holds_the_smaller() -> None:
    tenth = {c.messages[0].content for c in MANY if held_out(c, 0.1)}
    half = {c.messages[0].content for c in MANY if held_out(c, 0.5)}
    assert 60 < len(tenth) < 140 and 440 < len(half) < 560 and tenth < half


def test_duplicates_are_held_out_together_whatever_their_rows_look_like() -> None:
    for i in range(100):
        asked, answer = f"{i}\n?", f"{i}."
        chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        same = [
            {"messages": chat, "id": i},
            {"messages": [{**chat[0], "content": f" {i}\r\n?\n"}, {**chat[1], "train": False}]},
            {
                "conversations": [
                    {"from": "human", "value": asked},
                    {"from": "gpt", "value": answer},
                ]
            },
            {"instruction": asked, "input": "", "output": answer, "source": "x"},
            {"prompt": asked, "completion": answer},
            {"prompt": chat[:1], "completion": chat[1:], "tools": []},
        ]
        found = [formats.FORMATS[formats.detect(row)](row) for row in same]
        assert len({held_out(conversation, 0.5) for conversation in found}) == 1


def test_every_part_of_a_conversation_decides_but_the_ids_of_its_calls() -> None:
    def sides(change: Callable[[int], Conversation]) -> set[bool]:
        return {held_out(change(i), 0.5) for i in range(30)}

    user = Message("user", "x")
    both = {True, False}
    assert sides(lambda i: Conversation((user,), ({"name": f"f{i}"},))) == both
    assert sides(lambda i: Conversation((Message(f"r{i}", "x"),))) == both
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    calls = [({**call, "id": str(i)}, {"function": {"name": f"f{i}"}}) for i in range(30)]
    assert sides(lambda i: Conversation((Message("assistant", "", True, calls[i][1:]),))) == both
    same = sides(lambda i: Conversation((Message("assistant", "", True, calls[i][:1]),)))
    assert len(same) == 1


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
