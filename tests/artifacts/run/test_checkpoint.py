"""Checkpoints: published whole or not at all, every damage seen, the newest valid one never
lost."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loractl.artifacts.run import checkpoint
from loractl.digests import file_sha256
from loractl.errors import StateError, StorageError


def save(checkpoints: Path, step: int, *, keep: int = 2, value: float = 1.0) -> Path:
    tensors = {"w": torch.full((4,), value)}

    def write_model(directory: Path) -> None:
        save_file(tensors, directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text("{}")

    state = {"train": {"step": step}}
    return checkpoint.save(
        checkpoints, step, write_model=write_model, optimizer=tensors, state=state, keep=keep
    )


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


def test_a_checkpoint_holds_its_files_and_the_hash_of_each(tmp_path: Path) -> None:
    directory = save(tmp_path, 5)
    assert directory == tmp_path / "step-000005"
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["step"] == 5
    assert manifest["files"] == {
        path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in directory.iterdir()
        if path.name != "manifest.json"
    }
    assert len(manifest["files"]) == 4


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    save(tmp_path, 5, value=7.0)
    found, wrong = checkpoint.newest_valid(tmp_path)
    assert wrong == [] and found.state == {"train": {"step": 5}}
    assert found.optimizer["w"].tolist() == [7.0] * 4
    assert found.tensors("adapter_model.safetensors")["w"].tolist() == [7.0] * 4


def test_the_newest_is_newest_by_number_not_by_spelling(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save(tmp_path, step)
    assert checkpoint.newest_valid(tmp_path)[0].directory.name == "step-1000000"
    assert [path.name for path in checkpoint.published(tmp_path)] == ["step-999999", "step-1000000"]


def test_the_oldest_valid_ones_beyond_those_kept_go(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, keep=3)
    assert names(tmp_path) == ["step-000003", "step-000004", "step-000005"]


def test_damaged_ones_do_not_count_among_those_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    for step in (2, 3):
        (tmp_path / f"step-00000{step}" / "state.json").write_text("{}")
    save(tmp_path, 4, keep=2)
    assert {"step-000001", "step-000004"} <= set(names(tmp_path))
    assert checkpoint.newest_valid(tmp_path)[0].directory.name == "step-000004"


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.safetensors",
        "adapter_config.json",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    ],
)
def test_every_truncation_and_every_flipped_bit_is_seen(name: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    whole = path.read_bytes()
    # The last byte of a JSON file is a newline, without which it says the same.
    ends = 2 if name == "manifest.json" else 1
    cuts = [whole[:length] for length in sorted({0, 1, len(whole) // 2, len(whole) - ends})]
    places = range(0, len(whole), max(1, len(whole) // 40))
    flips = [
        bytes(b ^ (1 << (i % 8)) if i == place else b for i, b in enumerate(whole))
        for place in places
    ]
    for bad in (*cuts, *flips, whole + b"\0"):
        path.write_bytes(bad)
        found, wrong = checkpoint.newest_valid(tmp_path)
        assert found.directory.name == "step-000001", bad
        assert any(str(path.parent) in line for line in wrong)
    path.write_bytes(whole)
    assert checkpoint.newest_valid(tmp_path)[0].directory.name == "step-000002"
    path.unlink()
    assert checkpoint.newest_valid(tmp_path)[0].directory.name == "step-000001"


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "{}",
        '{"files": {}}',
        '{"files": []}',
        '{"files": {"state.json": 3}}',
        '{"files": {"state.json": {"size": 1}}}',
        '{"files": {"../../secret": {"size": 6, "sha256": "x"}}}',
        "null",
        "{",
        '{"files": {"state.json": null}}',
    ],
)
def test_a_manifest_of_another_form_makes_a_checkpoint_invalid(
    manifest: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    directory = save(tmp_path / "run" / "checkpoints", 1)
    (directory / "manifest.json").write_text(manifest)
    (fault, *_) = checkpoint.faults(directory)
    assert str(directory) in fault


def test_a_file_that_the_manifest_does_not_name_is_no_part_of_the_checkpoint(
    tmp_path: Path,
) -> None:
    directory = save(tmp_path, 1)
    (directory / "optimizer.pt").write_bytes(b"pickle")
    assert checkpoint.faults(directory) == []


def test_without_a_valid_one_every_reason_is_told(tmp_path: Path) -> None:
    for step, name in ((1, "state.json"), (2, "optimizer.safetensors")):
        (save(tmp_path, step) / name).write_bytes(b"")
    with pytest.raises(StateError) as caught:
        checkpoint.newest_valid(tmp_path)
    assert len(caught.value.messages) == 2
    assert "step-000002/optimizer.safetensors: truncated or changed" in caught.value.messages[0]
    assert "step-000001/state.json: truncated or changed" in caught.value.messages[1]


def test_without_any_there_is_nothing_to_resume(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StateError, match="nothing to resume"):
            checkpoint.newest_valid(place)


def test_what_a_crash_leaves_is_ignored(tmp_path: Path) -> None:
    save(tmp_path, 3)
    for name in (
        ".step-000004.tmp-77",
        ".step-000002.old-77",
        "step-5",
        "step-000006.bak",
        "notes",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000009").write_text("a file")
    found, wrong = checkpoint.newest_valid(tmp_path)
    assert found.directory.name == "step-000003" and wrong == []


def test_a_failed_save_leaves_the_ones_before_it_and_nothing_of_its_own(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def write_model(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"step-000002: No space left on device; 9 B .*needed"):
        checkpoint.save(
            tmp_path, 2, write_model=write_model, optimizer={}, state={}, keep=1, needs=9
        )
    assert names(tmp_path) == ["step-000001"]


def test_a_checkpoint_gets_its_name_by_one_rename_when_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renames: list[tuple[str, set[str]]] = []
    rename = Path.rename

    def seen(self: Path, target: Path) -> Path:
        renames.append((Path(target).name, {path.name for path in self.iterdir()}))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", seen)
    directory = save(tmp_path, 1)
    assert renames == [("step-000001", {path.name for path in directory.iterdir()})]


def test_every_file_and_the_directories_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    directory = save(tmp_path, 1)
    own = {path.name for path in directory.iterdir()}
    assert own <= set(synced[:-1]) and synced[-1] == tmp_path.name
    assert synced[-2].startswith(".step-000001.tmp-")


def test_a_valid_checkpoint_is_never_overwritten_and_a_damaged_one_is(tmp_path: Path) -> None:
    directory = save(tmp_path, 1, value=1.0)
    save(tmp_path, 1, value=2.0)
    assert checkpoint.newest_valid(tmp_path)[0].optimizer["w"][0] == 1.0
    (directory / "state.json").write_text("")
    save(tmp_path, 1, value=2.0)
    assert checkpoint.newest_valid(tmp_path)[0].optimizer["w"][0] == 2.0
    assert names(tmp_path) == ["step-000001"]
