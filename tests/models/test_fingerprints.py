"""A base's fingerprint is remembered as long as its files are the same, and no longer."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.models import fingerprints
from loractl.models.fingerprints import fingerprint, remembered_fingerprint
from loractl.models.load import Source, locate

Make = Callable[..., Path]
LONG_AGO = time.time() - 3600


@pytest.fixture
def source(base: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A base whose files were written an hour ago, and an empty cache."""
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path / "cache"))
    shutil.copytree(base("llama"), tmp_path / "base")
    for path in (tmp_path / "base").iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    return locate(str(tmp_path / "base"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to hash them."""
    found: list[Path] = []
    plain = fingerprints.file_sha256

    def counted(path: Path) -> str:
        found.append(path)
        return plain(path)

    monkeypatch.setattr(fingerprints, "file_sha256", counted)
    return found


def test_files_are_read_once_as_long_as_they_stay_as_they_are(
    source: Source, read: list[Path]
) -> None:
    first = remembered_fingerprint(source)
    assert len(read) == 2  # config.json and the weights
    assert remembered_fingerprint(source) == first == fingerprint(source)
    assert len(read) == 4, "read again although remembered, or not read where it has to be"


def test_other_bytes_are_noticed_by_size_time_or_inode(source: Source, read: list[Path]) -> None:
    weights = source.directory / "model.safetensors"
    first = remembered_fingerprint(source)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    copy = weights.with_suffix(".new")
    copy.write_bytes(content)
    os.utime(copy, (LONG_AGO, LONG_AGO))  # as rsync -t and cp -p do: the same size and time
    os.replace(copy, weights)
    second = remembered_fingerprint(source)
    weights.write_bytes(content + b"\0")
    third = remembered_fingerprint(source)
    assert len({first, second, third}) == 3


def test_a_file_that_has_just_changed_is_not_remembered(source: Source, read: list[Path]) -> None:
    """It could change once more within one tick of the file system's clock."""
    now = time.time()
    os.utime(source.directory / "config.json", (now, now))
    remembered_fingerprint(source)
    remembered_fingerprint(source)
    assert len(read) == 4


def test_a_damaged_entry_is_computed_again(
    source: Source, read: list[Path], tmp_path: Path
) -> None:
    first = remembered_fingerprint(source)
    (entry,) = (tmp_path / "cache" / "bases").iterdir()
    for damage in ("", "[]", "{}", '{"files": 3, "sha256": 5}'):
        entry.write_text(damage)
        assert remembered_fingerprint(source) == first
    assert len(read) == 10


def test_without_a_cache_that_can_be_written_it_is_computed(
    source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path / "file"))
    assert remembered_fingerprint(source) == fingerprint(source)


def test_only_own_entries_are_swept_when_old(source: Source, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "bases"
    cache.mkdir(parents=True)
    names = {f"{'a' * 32}.json", "notes.json", f"{'b' * 31}.json"}
    for name in names:
        (cache / name).write_text("{}")
        os.utime(cache / name, (1e9, 1e9))
    remembered_fingerprint(source)
    left = {path.name for path in cache.iterdir()}
    assert names & left == {"notes.json", f"{'b' * 31}.json"} and len(left) == 3


def test_a_link_to_a_base_shares_its_entry(source: Source, read: list[Path]) -> None:
    link = source.directory.parent / "link"
    link.symlink_to(source.directory)
    assert remembered_fingerprint(locate(str(link))) == remembered_fingerprint(source)
    assert len(read) == 2
