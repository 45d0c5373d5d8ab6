"""Checkpoints: checkpoints/step-000100/ with tensors, optimizer, state and a manifest of hashes.

A checkpoint is published by one rename after every file is synced, and is valid while its manifest
verifies: by the size and SHA-256 of every file, and by its own SHA-256. Which one is newest is
computed from those that verify, never stored.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from loractl import leftovers
from loractl.artifacts import files
from loractl.digests import file_sha256
from loractl.errors import ArtifactError, StateError

OPTIMIZER, STATE, MANIFEST = "optimizer.safetensors", "state.json", "manifest.json"
NAME = re.compile(r"step-(\d{6,})")
BEST = "best"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint whose files are all present, with the sizes and hashes of its manifest."""

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
    needs: int | None = None,
) -> Path:
    """Publish the checkpoint of a step, then remove those older than the newest `keep` valid ones.

    `write_model` puts the model's own files into the directory it is given; `needs` is the total
    number of bytes. A checkpoint of this step that verifies is kept as it is. Raises StorageError.
    """
    final = checkpoints / f"step-{step:06d}"
    if not (final.exists() and not faults(final)):

        def write(directory: Path) -> None:
            write_model(directory)
            files.write_tensors(directory / OPTIMIZER, optimizer)
            files.write_json(directory / STATE, state)
            seal(directory, step)

        files.publish(final, write, needs=needs)
    rotate(checkpoints, step, keep)
    return final


def save_best(
    checkpoints: Path,
    step: int,
    *,
    write_model: Callable[[Path], None],
    state: Mapping[str, Any],
    needs: int | None = None,
) -> None:
    """Publish `checkpoints`/best in place of the one before it: weights to publish at the end, not
    to resume from, so without the state of the optimizer. Raises StorageError."""

    def write(directory: Path) -> None:
        write_model(directory)
        files.write_json(directory / STATE, state)
        seal(directory, step)

    files.publish(checkpoints / BEST, write, needs=needs)


def best(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """The best checkpoint, or None and what is wrong with it: nothing if there never was one."""
    directory = checkpoints / BEST
    if not directory.exists():
        return None, []
    found = faults(directory)
    return (None, found) if found else (Checkpoint(directory), [])


def seal(directory: Path, step: int) -> None:
    """Write the manifest of the files in a directory."""
    listed = {
        path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(directory.iterdir())
    }
    content = {"step": step, "files": listed}
    files.write_json(directory / MANIFEST, {**content, "sha256": _digest_content(content)})


def rotate(checkpoints: Path, step: int, keep: int) -> None:
    """Remove those older than the newest `keep` valid ones; that of `step` is known to be valid.

    Hashing takes longer than writing, so only those that may stay are verified. Raises
    StorageError.
    """
    valid = 0
    for directory in reversed(published(checkpoints)):
        if valid >= keep:
            with files.told(directory):
                files.remove(directory)
        elif _step_of(directory) == step or not faults(directory):
            valid += 1


def _digest_content(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(files.as_json(content).encode()).hexdigest()


def published(checkpoints: Path) -> list[Path]:
    """Checkpoint directories, oldest first; one still being written has another name."""
    if not checkpoints.is_dir():
        return []
    found = [p for p in checkpoints.iterdir() if NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=_step_of)


def _step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))


def faults(directory: Path) -> list[str]:
    """What is wrong with a checkpoint, one line each; an empty list means that it is valid."""
    found = _manifest_faults(directory)
    return found if directory.is_dir() else [_GONE.format(directory)]


_GONE = "{}: removed while it was being read: a run keeps only its newest checkpoints"


def require_published(directory: Path) -> None:
    """Raise ArtifactError if what was read may be incomplete: its directory is gone or half done.

    A run that removes a checkpoint takes its name away first, so one that is still there is whole;
    and one that is being written has a name of its own.
    """
    if not directory.is_dir():
        raise ArtifactError(_GONE.format(directory))
    if leftovers.is_leftover(directory.resolve()):
        raise ArtifactError(
            f"{directory}: is being written, or was left half-written by a process that was killed;"
            " use a finished one"
        )


def _manifest_faults(directory: Path) -> list[str]:
    where = directory / MANIFEST
    try:
        text = files.read_text(where)
        manifest = files.read_json(where)
    except ArtifactError as error:
        return [str(error)]
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    # The text too: without its last newline the JSON would read the same.
    if manifest.get("sha256") != _digest_content(content) or text != files.as_json(manifest):
        return [f"{where}: damaged: its SHA-256 does not match its content"]
    listed = manifest.get("files")
    needed = [STATE] if directory.name == BEST else [OPTIMIZER, STATE]
    if not isinstance(listed, dict) or not set(needed) <= listed.keys():
        return [f"{where}: damaged: it does not list {' and '.join(needed)}"]
    # A copy may have any name.
    if NAME.fullmatch(directory.name) and manifest.get("step") != _step_of(directory):
        return [f"{where}: damaged: it is of step {manifest.get('step')}"]
    return [fault for name, entry in listed.items() for fault in _faults_of(directory, name, entry)]


def _faults_of(directory: Path, name: str, entry: Any) -> list[str]:
    """What is wrong with one file, going by its entry in the manifest."""
    path = directory / name
    if path.parent != directory or not isinstance(entry, dict):
        return [f"{directory / MANIFEST}: its entry for {name!r} is damaged"]
    try:
        size, expected = path.stat().st_size, entry.get("size")
        if size != expected:
            return [f"{path}: truncated or changed: found {size} bytes, expected {expected}"]
        if file_sha256(path) != entry.get("sha256"):
            return [f"{path}: damaged: its SHA-256 is not the one in the manifest"]
    except FileNotFoundError:
        return [f"{path}: missing"]
    except OSError as error:  # a directory in its place, a disk that cannot be read
        return [f"{path}: cannot be read: {error.strerror}"]
    return []


def newest_valid(checkpoints: Path) -> tuple[Checkpoint, list[str]]:
    """The newest valid checkpoint, and what was wrong with newer ones. Raises StateError.

    While a run is in progress there, others may be gone by the time they are checked; then it looks
    again.
    """
    while True:
        wrong: list[str] = []
        directories = published(checkpoints)
        for directory in reversed(directories):
            found = faults(directory)
            if not found:
                return Checkpoint(directory), wrong
            wrong += found
        if published(checkpoints) == directories:  # one that is renamed may be missing in a list
            break
    reason = f"no valid checkpoint in {checkpoints}"
    if not wrong:
        raise StateError(f"{reason}: nothing to resume; use --overwrite to start from scratch")
    raise StateError(*[f"{reason}: {line}" for line in wrong])
