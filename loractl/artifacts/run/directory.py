"""The directory of a run: its layout, the state it is in, and who may write to it."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from loractl import leftovers
from loractl.artifacts.run import lock, proofs
from loractl.errors import ConfigError, StateError


class Status(Enum):
    ABSENT = "absent"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


@dataclass(frozen=True)
class RunDir:
    """The layout of a run directory."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def notes(self) -> Path:
        """What only the loaded model could tell, for the report."""
        return self.path / "report.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def status(self) -> Status:
        """Whether there is a run here. Raises ConfigError if there is anything else."""
        for path in (self.path, *self.path.parents):
            if path.exists() and not path.is_dir():
                raise ConfigError(f"out: {path} is a file, expected a directory for the run")
        if not self.path.exists():
            return Status.ABSENT
        if all(
            leftovers.is_leftover(path) or path.name == lock.NAME for path in self.path.iterdir()
        ):
            return Status.ABSENT
        if not self.config.is_file():
            raise ConfigError(
                f"out: {self.path} is not empty and does not hold a run (no config.yaml);"
                " choose another directory"
            )
        done = self.adapter.is_dir() or self.model.is_dir()
        return Status.FINISHED if done else Status.UNFINISHED

    def require(self, *, resume: bool, overwrite: bool) -> Status:
        """Check that training may start or continue here. Raises ConfigError or StateError."""
        status = self.status()
        lock.require_free(self.path)
        if resume and status is Status.ABSENT and not self.was_killed():
            raise StateError(f"{self.path}: no run to resume; train without --resume to start one")
        if status is not Status.ABSENT and not resume and not overwrite:
            kind = "a finished" if status is Status.FINISHED else "an unfinished"
            raise StateError(
                f"{self.path}: holds {kind} run; use --resume to continue it, --overwrite to"
                " replace it, or --out for another directory"
            )
        return status

    def was_killed(self) -> bool:
        """Whether the last run here had no time to remove its lock; only valid while none runs."""
        return (self.path / lock.NAME).exists()

    def clear_(self) -> None:
        """Remove all that a run writes except config.yaml, which the next one replaces; other files
        stay.

        The config stays so that leftovers of a kill are still recognized as a run.
        """
        from loractl.artifacts import files  # imports torch

        for path in (self.adapter, self.model, self.checkpoints):
            if path.exists():
                files.remove(path)
        for path in (self.metrics, self.data, self.notes, self.report, self.path / proofs.NAME):
            path.unlink(missing_ok=True)

    def sweep_(self) -> None:
        """Remove anything that a killed process left half-written or half-removed."""
        for directory in (self.path, self.checkpoints):
            leftovers.sweep_directory(directory)
