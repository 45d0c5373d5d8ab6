"""What a run took of its rows, so that eval and generate treat theirs alike: recorded in
loractl.json, and for runs that recorded nothing found in their config."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loractl.artifacts.run.directory import RunDir
from loractl.config import loader
from loractl.config.settings import DataSection


@dataclass(frozen=True)
class Taken:
    """The settings of `data` of the same names."""

    train_on: str = "assistant"
    thoughts: str = "auto"
    split_turns: bool = False

    def otherwise(self, other: "Taken") -> str:
        """In which settings another differs, and how."""
        theirs = asdict(other)
        differing = [
            f"data.{name}: {theirs[name]}, not {value}"
            for name, value in asdict(self).items()
            if theirs[name] != value
        ]
        return ", ".join(differing).replace("True", "true").replace("False", "false")


def of_config(data: DataSection) -> Taken:
    return Taken(data.train_on, data.thoughts, data.split_turns)


def about_rows(data: DataSection) -> dict[str, Any]:
    """What loractl.json says of it."""
    return {"rows": asdict(of_config(data))}


def taken_by(path: Path, about: Mapping[str, Any]) -> Taken | None:
    """What the run of an adapter or a model took of its rows; None if there is no telling."""
    found, plain = about.get("rows"), asdict(Taken())
    if isinstance(found, dict):
        return Taken(**{n: v for n, v in found.items() if n in plain and type(v) is type(plain[n])})
    run = find_run(path)
    return of_config(loader.load(run.config, paths_exist=False).config.data) if run else None


def find_run(path: Path) -> RunDir | None:
    """The run that a path is, or is an adapter, a model or a checkpoint of."""
    for place in (path, *list(path.absolute().parents)[:2]):
        run = RunDir(place)
        if run.config.is_file() and run.data.is_file():
            return run
    return None
