"""Directories and data sets of the hub as sources: their files, their splits, their hashes."""

from pathlib import Path

import datasets
import pytest

from loractl.data import sources
from loractl.data.sources import Row, file_hash, fingerprint, read
from loractl.errors import DataError
from loractl.paths import is_hub_data
from tests.data.conftest import FLAT, write_csv, write_parquet
from tests.tiny import write_jsonl

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
