"""Files under their final names are whole: the old content or the new, never a part, never a
leftover."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from loractl.artifacts import files
from loractl.errors import ArtifactError


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_tensors_come_back_bit_for_bit_with_the_mode_of_any_new_file(
    mask: int, tmp_path: Path
) -> None:
    path, tensors = (
        tmp_path / "t.safetensors",
        {"b": torch.randn(3, 2).T, "a": torch.ones(2).half()},
    )
    before = os.umask(mask)
    try:
        files.write_tensors(path, tensors)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    for found in (files.read_tensors(path), load_file(path)):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}  # without which transformers refuses a file


def test_json_has_stable_keys_and_any_fault_of_it_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"b": 1, "a": {"d": [2], "c": None}})
    first = path.read_bytes()
    files.write_json(path, {"a": {"c": None, "d": [2]}, "b": 1})
    assert path.read_bytes() == first
    assert files.read_json(path) == {"b": 1, "a": {"d": [2], "c": None}}
    for bad in (
        b"",
        b"{",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ):
        path.write_bytes(bad)
        with pytest.raises(ArtifactError, match=r"a\.json: "):
            files.read_json(path)
    with pytest.raises(ArtifactError, match="not found"):
        files.read_json(tmp_path / "absent.json")


def listing(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text() if path.is_file() else "/"
        for path in sorted(directory.rglob("*"))
    }


def test_a_directory_is_published_whole_in_place_of_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "final"
    for content in ("old", "new"):
        files.publish(final, lambda path, content=content: (path / content).write_text(content))
        assert listing(tmp_path) == {
            "deep": "/",
            "deep/final": "/",
            f"deep/final/{content}": content,
        }


def test_a_failure_while_writing_leaves_what_stood_there(tmp_path: Path) -> None:
    final = tmp_path / "final"
    files.publish(final, lambda path: (path / "a").write_text("old"))

    def write(path: Path) -> None:
        (path / "a").write_text("new")
        assert listing(final) == {"a": "old"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.publish(final, write)
    assert listing(tmp_path) == {"final": "/", "final/a": "old"}


def test_a_text_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    files.replace_text(path, "old")
    rename = Path.rename

    def seen(self: Path, target: Path) -> Path:
        assert (path.read_text(), self.read_text()) == ("old", "neü\n")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", seen)
    files.replace_text(path, "neü\n")
    assert listing(tmp_path) == {"config.yaml": "neü\n"}


def test_removing_takes_a_directory_a_file_or_only_a_link(tmp_path: Path) -> None:
    (tmp_path / "full" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    files.remove(tmp_path / "link")
    assert (tmp_path / "full" / "inner").is_dir()
    files.remove(tmp_path / "file")
    files.remove(tmp_path / "full")
    assert listing(tmp_path) == {}
