"""Opening files: gzip and byte-order marks are seen from the bytes, and faults are worded."""

import gzip
import os
from pathlib import Path

import pytest

from loractl.data.row_files import open_rows
from loractl.errors import DataError


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_plain_and_packed_bytes_are_read_alike_whatever_the_name(
    tmp_path: Path, mark: bytes, pack: type[bytes]
) -> None:
    (tmp_path / "a").write_bytes(pack(mark + b"one\r\ntwo\n"))
    with open_rows(tmp_path / "a") as file:
        assert list(file) == [b"one\r\n", b"two\n"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("Straße".encode("utf-16"), "found UTF-16, expected UTF-8"),
        (gzip.compress("Straße".encode("utf-16"), mtime=0), "found UTF-16, expected UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (gzip.compress(os.urandom(5000))[:-100], "cut off or corrupt"),
        (gzip.compress(os.urandom(5000))[:2000] + b"xxxx", "cut off or corrupt"),
        (b"\x1f\x8bxxxx", "cut off or corrupt"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught, open_rows(path) as file:
        file.read()
    assert str(caught.value).startswith(str(path))


def test_a_path_that_cannot_be_opened_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"^a.csv: does not exist \(resolved to {tmp_path}/a.csv"):
        open_rows(Path("a.csv")).__enter__()
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        open_rows(tmp_path).__enter__()
