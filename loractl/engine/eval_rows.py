"""Which rows `eval` measures, and in which batches: a file, or what a run held out.

The rows of a run are batched as in its own evaluations, so that the loss is the number that
training printed: in bfloat16 another packing would round differently.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from loractl import console
from loractl.artifacts import files
from loractl.artifacts.run.directory import RunDir
from loractl.config import loader
from loractl.data import batches, examples
from loractl.data.reading import Reading, conversations
from loractl.data.rendering import Tokenizer
from loractl.data.store import Mixture, Store
from loractl.engine.data import held_out_readings
from loractl.engine.run_rows import Taken, find_run
from loractl.errors import ConfigError, DataError
from loractl.evaluation.eval_request import BATCH_SIZE, MAX_LENGTH, EvalRequest
from loractl.paths import is_hub_data
from loractl.records import Conversation
from loractl.text import counted

UNANSWERED = "unanswered"


@dataclass(frozen=True)
class EvalRows:
    """Rows to measure: where they are, how they are read, and how they are batched."""

    sources: tuple[tuple[str, Reading], ...]
    plan: batches.BatchPlan
    of_run: bool = False
    kernels: str = "auto"  # which layers compute the loss, as in train.kernels
    sha256: tuple[str | None, ...] = ()  # of the sources, as a run read them
    noted: set[str] = field(default_factory=set)  # what was said: each model reads again

    @property
    def name(self) -> str:
        return ", ".join(path for path, _ in self.sources)

    @property
    def taken(self) -> Taken:
        """What of the rows is kept and trained."""
        reading = self.sources[0][1]
        return Taken(reading.train_on, reading.thoughts, reading.split_turns)

    @property
    def _are_named(self) -> bool:
        """Whether a row is known by its file and line, not by its line alone."""
        return len(self.sources) > 1 or Path(self.sources[0][0]).is_dir()

    def conversations(self) -> list[tuple[int | str, Conversation]]:
        """Every row with its place. Raises DataError for bad ones, or if there is none."""
        bad: list[str] = []
        found: list[tuple[int | str, Conversation]] = [
            (f"{row.path}:{row.line}" if self._are_named else row.line, conversation)
            for path, reading in self.sources
            for row, conversation, _ in conversations(path, reading, bad.append)
        ]
        if bad or not found:
            raise DataError(*(bad or [f"{self.name}: no rows"]))
        return found

    def note_unanswered(self, count: int) -> None:
        """Say once, not for each model, how many rows the metrics of answers leave out."""
        if count and UNANSWERED not in self.noted:
            self.noted.add(UNANSWERED)
            console.note(
                f"note: {self.name}: {counted(count, 'row')} without a trained answer left out"
            )

    def examples(self, tokenizer: Tokenizer) -> Mixture:
        """The rows as tokens. Raises DataError."""
        stores: list[Store] = []
        for number, (path, reading) in enumerate(self.sources):
            store, account = examples.load(path, tokenizer, reading)
            store.named = self._are_named
            known = self.sha256[number] if self.sha256 else None
            if known not in (None, account.sha256) and path not in self.noted:
                self.noted.add(path)
                console.note(f"note: {path} has changed since the run read it")
            stores.append(store)
        return Mixture(stores)


def rows_of_file(
    path: Path,
    asked: EvalRequest,
    *,
    taken: Taken,
    columns: Mapping[str, str] | None = None,
) -> EvalRows:
    """The rows of a file, one per row of a batch; of each is taken what a run took of its own."""
    length = asked.max_length or MAX_LENGTH
    reading = Reading(
        "auto", length, too_long="truncate", columns=dict(columns or {}), **asdict(taken)
    )
    plan = batches.BatchPlan(asked.batch_size or BATCH_SIZE, 1, length, packing=False)
    return EvalRows(((str(path), reading),), plan)


def taken_by_first(found: Mapping[Path, Taken | None]) -> Taken:
    """What the first of several runs took of its rows, as which all are measured; it is said where
    another took something else."""
    known = {path: taken for path, taken in found.items() if taken is not None}
    (first, taken), *others = known.items() or [(Path(), Taken())]
    for path, other in others:
        if other != taken:
            console.note(
                f"note: {path} was trained with {taken.otherwise(other)}; the rows are read as"
                f" {first} read its own"
            )
    return taken


def rows_of_runs(paths: Iterable[Path], asked: EvalRequest, positions: int | None) -> EvalRows:
    """The rows that the runs of these adapters and models held out.

    Raises ConfigError if there are none, or if the runs held out different ones.
    """
    paths = list(paths)
    runs = {run.path: run for path in paths if (run := find_run(path)) is not None}
    if not runs:
        raise ConfigError(f"{paths[0]}: not part of a run, which would have rows; give --data FILE")
    found = {path: _rows_of_run(run, asked, positions) for path, run in runs.items()}
    taken_by_first({path: rows.taken for path, rows in found.items()})
    (first, rows), *others = found.items()
    for other, its_rows in others:
        if _which(rows) != _which(its_rows):
            raise ConfigError(
                f"{first} and {other} held out different rows; give --data FILE to measure both on"
            )
    return rows


def _which(rows: EvalRows) -> list[Any]:
    """What decides which rows they are, without how they become tokens."""
    return [
        (path, reading.format, reading.columns, reading.split, reading.held_out)
        for path, reading in rows.sources
    ]


def _rows_of_run(run: RunDir, asked: EvalRequest, positions: int | None) -> EvalRows:
    config = loader.load(run.config, paths_exist=False).config
    data, train = config.data, config.train
    length = asked.max_length or min(data.max_length, positions or data.max_length)
    accounts = files.read_json(run.data)
    sources, known = [], []
    for name, (path, reading) in held_out_readings(data, max_length=length).items():
        account = accounts.get(name)
        account = account if isinstance(account, dict) else {}
        recorded = account.get("path")
        reading = replace(reading, positions=positions)
        sources.append((_find_data(run, recorded if isinstance(recorded, str) else path), reading))
        known.append(account.get("sha256"))
    if not sources:
        raise ConfigError(f"{run.path}: held out no rows (data.eval is not set); give --data FILE")
    if asked.columns:
        given = dict(asked.columns)
        sources = [(path, replace(reading, columns=given)) for path, reading in sources]
    if asked.max_length:  # another length than the run's: cut, as with --data
        sources = [(path, replace(reading, too_long="truncate")) for path, reading in sources]
    plan = batches.BatchPlan(
        asked.batch_size or train.batch_size, 1, length, packing=data.packing, seed=config.seed
    )
    return EvalRows(tuple(sources), plan, True, train.kernels, tuple(known))


def _find_data(run: RunDir, name: str) -> str:
    """A source of a run; a relative path counts from the working directory, else from the run's or
    one above it, which is where an older run was usually started."""
    path = Path(name).expanduser()
    if is_hub_data(name):
        return name
    for place in (Path(), *run.path.absolute().parents):
        if (place / path).exists():
            return str(place / path)
    raise ConfigError(f"{run.path}: its data {name} is gone; give --data FILE")
