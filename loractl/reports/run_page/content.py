"""What the page of a run is made of: plain values, read from the files of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loractl.config.changes import Change
from loractl.records import HeldOutLoss
from loractl.reports.run_page.notes import Notes

FINISHED, TRAINING, STOPPED = "finished", "training", "stopped"


@dataclass(frozen=True)
class WrittenFile:
    """A file of the run; `sha256` is None where it is too large to hash for a page."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Proof:
    """Something that was proven of the run, or could not be."""

    name: str
    holds: bool
    says: str


@dataclass(frozen=True)
class RunContent:
    """A run as its files tell it. What is absent is empty, and `absent` may say why."""

    name: str
    path: str
    state: str  # FINISHED, TRAINING or STOPPED
    settings: Mapping[str, Any]  # all of them, by dotted keys
    changed: Sequence[Change] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    accounts: Mapping[str, Any] = field(default_factory=dict)  # data.json
    about: Mapping[str, Any] = field(default_factory=dict)  # loractl.json of what was published
    notes: Notes = Notes()  # report.json
    updates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by module: `inspect`
    estimate: Mapping[str, Any] = field(default_factory=dict)  # of planning
    held_out: HeldOutLoss | None = None  # of the published, else of the newest weights
    proofs: Sequence[Proof] = ()
    files: Sequence[WrittenFile] = ()
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return str(self.settings.get("method"))

    @property
    def is_live(self) -> bool:
        return self.state == TRAINING
