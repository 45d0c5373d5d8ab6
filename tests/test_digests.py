"""A file's SHA-256 is that of all its bytes, however many pieces they are read in."""

import hashlib
from pathlib import Path

import pytest

from loractl.digests import PIECE, file_sha256


@pytest.mark.parametrize("size", [0, 100_000, PIECE, PIECE + 1, 2 * PIECE + 77])
def test_the_hash_is_sha256_of_the_bytes(size: int, tmp_path: Path) -> None:
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "absent")
