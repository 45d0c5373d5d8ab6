"""Checkpoints: checkpoints/step-000100/ with tensors, optimizer, state and a manifest of hashes.

A checkpoint is published by one rename after every file is synced, and valid while its manifest
verifies. Which one is newest is computed from what verifies, never stored.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from loractl.artifacts import files
from loractl.errors import ArtifactError, StateError

OPTIMIZER, STATE, MANIFEST = "optimizer.safetensors", "state.json", "manifest.json"
NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint whose files are all there, with the sizes and hashes of its manifest."""

    directory: Path

    @property
    def state(self) -> dict[str, Any]:
        return files.read_json(self.directory / STATE)

    @property
    def optimizer(self) -> dict[str, Tensor]:
        return files.read_tensors(self.directory / OPTIMIZER)

    def tensors(self, name: str) -> dict[str, Tensor]:
        return files.read_tensors(self.directory / name)


def save(
    checkpoints: Path,
    step: int,
    *,
    write_model: Callable[[Path], None],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Publish the checkpoint of a step, then remove the oldest valid ones beyond `keep`.

    `write_model` puts the model's own files into the directory it is given. A checkpoint of this
    step that verifies is left as it is. Raises StorageError.
    """
    final = checkpoints / f"step-{step:06d}"
    if not (final.exists() and not faults(final)):

        def write(directory: Path) -> None:
            write_model(directory)
            files.write_tensors(directory / OPTIMIZER, optimizer)
            files.write_json(directory / STATE, state)
            manifest = {
                path.name: {"size": path.stat().st_size, "sha256": files.sha256(path)}
                for path in sorted(directory.iterdir())
            }
            files.write_json(directory / MANIFEST, {"step": step, "files": manifest})

        files.publish(final, write)
    valid = [path for path in published(checkpoints) if not faults(path)]
    for old in valid[:-keep]:
        files.remove(old)
    return final


def published(checkpoints: Path) -> list[Path]:
    """Checkpoint directories, oldest first; what is still being written has another name."""
    if not checkpoints.is_dir():
        return []
    found = [p for p in checkpoints.iterdir() if NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=_step_of)


def _step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))


def faults(directory: Path) -> list[str]:
    """What is wrong with a checkpoint, a line each: an empty list means that it is valid."""
    try:
        manifest = files.read_json(directory / MANIFEST)
    except ArtifactError as error:
        return [str(error)]
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not listed:
        return [f"{directory / MANIFEST}: lists no files: damaged"]
    # A copy may have any name.
    if NAME.fullmatch(directory.name) and manifest.get("step") != _step_of(directory):
        return [f"{directory / MANIFEST}: is of step {manifest.get('step')}: damaged"]
    return [fault for name, entry in listed.items() for fault in _faults_of(directory, name, entry)]


def _faults_of(directory: Path, name: str, entry: Any) -> list[str]:
    """What is wrong with one file, by what the manifest says of it."""
    path = directory / name
    if path.parent != directory or not isinstance(entry, dict):
        return [f"{directory / MANIFEST}: its entry for {name!r} is damaged"]
    if not path.is_file():
        return [f"{path}: missing"]
    size, expected = path.stat().st_size, entry.get("size")
    if size != expected:
        return [f"{path}: {size} bytes, expected {expected}: truncated or changed"]
    if files.sha256(path) != entry.get("sha256"):
        return [f"{path}: its SHA-256 is not that of the manifest: damaged"]
    return []


def newest_valid(checkpoints: Path) -> tuple[Checkpoint, list[str]]:
    """The newest valid checkpoint, and what was wrong with newer ones. Raises StateError."""
    wrong: list[str] = []
    for directory in reversed(published(checkpoints)):
        found = faults(directory)
        if not found:
            return Checkpoint(directory), wrong
        wrong += found
    reason = f"no valid checkpoint in {checkpoints}"
    if not wrong:
        raise StateError(
            f"{reason}: there is none, so there is nothing to resume; use --overwrite to start anew"
        )
    raise StateError(*[f"{reason}: {line}" for line in wrong])
