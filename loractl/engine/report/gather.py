"""A run directory -> the content of its page, whatever state the run is in.

Reads files only, so a page can be made at any time and on another machine. A part that is missing
or damaged leaves its section empty, with the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from loractl.artifacts import files
from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import updates
from loractl.artifacts.run import checkpoint, lock, metrics, proofs
from loractl.artifacts.run.directory import RunDir, Status
from loractl.config import loader
from loractl.config.changes import changes, flatten
from loractl.config.settings import RunConfig
from loractl.digests import file_sha256
from loractl.engine.inspect import measure_update
from loractl.errors import ArtifactError, ConfigError, ModelError, StateError
from loractl.lora.ranks import UnmatchedError
from loractl.planning import estimate
from loractl.planning.known_model import automatic_dtype, shape_of
from loractl.planning.request import of_settings
from loractl.records import HeldOutLoss
from loractl.reports.run_page.content import (
    FINISHED,
    STOPPED,
    TRAINING,
    Proof,
    RunContent,
    WrittenFile,
)
from loractl.reports.run_page.notes import Notes
from loractl.text import printable
from loractl.training.state import TrainState

MOST_HASHED = 256 << 20
"""Bytes that are hashed for a page: a second's work."""


def gather(directory: RunDir) -> RunContent:
    """Read a run. Raises ConfigError if there is none, or if its config cannot be read."""
    status = directory.status()
    if status is Status.ABSENT:
        raise ConfigError(printable(f"{directory.path}: not a run directory (no config.yaml)"))
    config = loader.load(directory.config, paths_exist=False).config
    absent: dict[str, str] = {}
    written = list(_written(directory, config))
    about = _read(absent, "about", _published(directory, config) / adapters.ABOUT)
    return RunContent(
        name=printable(directory.path.resolve().name),
        path=printable(str(directory.path)),
        state=_state(directory, status),
        settings=flatten(config.model_dump()),
        changed=changes(config),
        metrics=metrics.read(directory.metrics),
        accounts=_read(absent, "accounts", directory.data),
        about=about,
        notes=_notes(absent, directory.notes),
        updates=_updates(absent, directory, config),
        estimate=_estimate(absent, config, about),
        held_out=_held_out(directory, about.get("step")),
        proofs=[*_resumable(directory), *_recorded_proofs(directory, written)],
        files=written,
        absent=absent,
    )


def _published(directory: RunDir, config: RunConfig) -> Path:
    return directory.model if config.method == "full" else directory.adapter


def _state(directory: RunDir, status: Status) -> str:
    if status is Status.FINISHED:
        return FINISHED
    try:
        lock.require_free(directory.path)
    except StateError:
        return TRAINING
    return STOPPED


def _read(absent: dict[str, str], part: str, path: Path) -> dict[str, Any]:
    """A JSON object, or nothing; the reason goes to `absent` unless the file is just not there."""
    if not path.exists():
        return {}
    try:
        return files.read_json(path)
    except ArtifactError as error:
        absent[part] = printable(str(error))
        return {}


def _notes(absent: dict[str, str], path: Path) -> Notes:
    try:
        return Notes.from_dict(_read(absent, "notes", path))
    except ArtifactError as error:
        absent["notes"] = printable(f"{path.parent}: {error}")
        return Notes()


def _updates(
    absent: dict[str, str], directory: RunDir, config: RunConfig
) -> dict[str, dict[str, Any]]:
    """By module, the measures of the published adapter, or of the newest checkpoint's."""
    where = directory.adapter
    if config.method == "full":
        return {}
    if not where.is_dir():
        saved = checkpoint.published(directory.checkpoints)
        if not saved:
            return {}
        where = saved[-1]
    try:
        return _measured(where, _written_ns(where))
    except (ArtifactError, FileNotFoundError) as error:  # a run removes its old checkpoints
        absent["updates"] = printable(str(error))
        return {}


@lru_cache(maxsize=1)
def _measured(where: Path, written_ns: int) -> dict[str, dict[str, Any]]:
    """The measures of an adapter's modules. Kept while its files are the same, so that a page that
    is watched takes little from the run."""
    found = updates.updates(adapters.read(where))
    return {name: measure_update(update) for name, update in found.items()}


def _estimate(
    absent: dict[str, str], config: RunConfig, about: Mapping[str, Any]
) -> dict[str, Any]:
    """What planning says of the run beside full fine-tuning, if the base is still there."""
    base = about.get("base")
    recorded = base.get("name_or_path") if isinstance(base, dict) else None
    dtype = about.get("dtype")
    request = of_settings(
        config.model,
        config.method,
        config.lora,
        config.data,
        config.train,
        dtype=dtype if isinstance(dtype, str) else automatic_dtype(),
    )
    failed = ""
    for name in dict.fromkeys((recorded, config.model.name_or_path)):
        if not isinstance(name, str):
            continue
        try:
            return estimate.report(name, shape_of(name), request)
        except (ModelError, UnmatchedError, OSError) as error:
            failed = printable(str(error))
    absent["estimate"] = failed
    return {}


def _held_out(directory: RunDir, step: Any) -> HeldOutLoss | None:
    """The held-out loss of the weights of a step by groups of rows, from the checkpoint that has
    it; without a step, that of the newest checkpoint."""
    saved = [checkpoint.Checkpoint(path) for path in checkpoint.published(directory.checkpoints)]
    for one in [*saved[::-1], checkpoint.Checkpoint(directory.checkpoints / checkpoint.BEST)]:
        try:
            state = TrainState.restored(one.state["train"])
        except (ArtifactError, KeyError, TypeError):
            continue
        if step is None or state.step == step:
            return state.last_loss
    return None


def _resumable(directory: RunDir) -> Iterator[Proof]:
    """Whether the run can be resumed: its newest checkpoint is the one that was written."""
    saved = checkpoint.published(directory.checkpoints)
    if not saved:
        return
    newest = saved[-1]
    try:
        if _size_of(newest) > MOST_HASHED:
            return
        wrong = _faults(newest, _written_ns(newest))
    except FileNotFoundError:  # a run removes its old checkpoints
        return
    if wrong:
        yield Proof("resume", False, printable(wrong[0]))
    else:
        step = int(newest.name.removeprefix("step-"))
        said = f"the checkpoint of step {step:,} verifies: size and SHA-256 of each of its files"
        yield Proof("resume", True, said)


@lru_cache(maxsize=1)
def _faults(saved: Path, written_ns: int) -> list[str]:
    return checkpoint.faults(saved)


def _recorded_proofs(directory: RunDir, written: Sequence[WrittenFile]) -> Iterator[Proof]:
    """What merges and exports said; one of other weights than those published is none of these."""
    weights = {one.sha256 for one in written if one.name.endswith(adapters.WEIGHTS)} - {None}
    for row in proofs.read(directory.path):
        if weights and row.get("weights_sha256") not in weights:
            continue
        said = printable("; ".join(map(str, row["said"])))
        yield Proof(printable(f"{row.get('what')}"), row.get("is_proven") is True, said)


def _written(directory: RunDir, config: RunConfig) -> Iterator[WrittenFile]:
    """The files that were published."""
    where = _published(directory, config)
    for path in sorted(where.iterdir()) if where.is_dir() else ():
        if path.is_file():
            size = path.stat().st_size
            sha256 = file_sha256(path) if size <= MOST_HASHED else None
            yield WrittenFile(f"{where.name}/{printable(path.name)}", size, sha256)


def _written_ns(directory: Path) -> int:
    """When a file of a directory was last written."""
    return max((path.stat().st_mtime_ns for path in directory.iterdir()), default=0)


def _size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*") if path.is_file())
