"""A source of rows -> the conversations in them, and the account of those that are none."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from loractl.data import column_words, rows, sources, thoughts
from loractl.data.columns import SAMPLE
from loractl.errors import DataError
from loractl.records import Conversation

BATCH = 256
BATCH_CHARACTERS = 400_000
"""Rows and characters tokenized in one call: enough to keep the tokenizer's threads busy, few
enough to hold in memory."""


@dataclass(frozen=True)
class Reading:
    """How the rows of a source become examples."""

    format: str
    max_length: int
    train_on: str
    too_long: str
    columns: dict[str, str] = field(default_factory=dict)
    split: str | None = None  # of a hub dataset
    held_out: float | None = None  # share of the rows held out, chosen by content
    part: str = "all"  # with held_out: "train" or "eval"
    positions: int | None = None  # of the model: max_length cannot be above them
    thoughts: str = "auto"  # which reasoning a row keeps before it is rendered
    split_turns: bool = False  # an example for each answer

    @property
    def is_all_positions(self) -> bool:
        return self.positions is not None and self.max_length >= self.positions

    def takes(self, conversation: Conversation) -> bool:
        """Whether a row belongs to the part that is read."""
        if self.held_out is None or self.part == "all":
            return True
        return sources.held_out(conversation, self.held_out) == (self.part == "eval")


def conversations(
    name: str, reading: Reading, on_error: Callable[[str], None]
) -> Iterator["Found"]:
    """Yield (row, conversation, format) for every good row, or each of its answers (`split_turns`).

    The first row decides the format of the source. Bad rows are reported to `on_error`.
    """
    format = reading.format
    for row in sources.read(name, reading.split):
        if row.error is not None:
            on_error(f"{row.path}:{row.line}: {row.error}")
            continue
        fields = row.fields
        try:
            fields = rows.rename(fields, reading.columns)
            if format == "auto":
                format = _detect_format(name, row, fields, reading)
            conversation = rows.read(fields, format)
        except rows.RowError as error:
            on_error(f"{row.path}:{row.line}: {error}{_other_format(fields, format)}")
            continue
        if reading.takes(conversation):
            for one in thoughts.prepared(conversation, reading.thoughts, reading.split_turns):
                yield row, one, format


def _detect_format(name: str, row: sources.Row, fields: Mapping[str, Any], reading: Reading) -> str:
    """The format of a source, from its first row. Raises DataError if that has none, since every
    other row would fail the same way; with the columns to map, if some can be proposed."""
    try:
        return rows.detect(fields, reading.columns)
    except rows.RowError as error:
        sample = list(islice(sources.read(name, reading.split), SAMPLE))
        raise DataError(f"{row.path}:{row.line}: {error}{column_words.hint(sample)}") from None


def _other_format(fields: Any, format: str) -> str:
    """A hint for a bad row that would be good in another format than the rows before it."""
    try:
        other = rows.detect(fields)
    except rows.RowError:
        return ""
    if other == format or format == "auto":
        return ""
    return f"; the row looks like {other}, but the file's rows are {format}"


Found = tuple[sources.Row, Conversation, str]
"""A row, the conversation it holds, and the format it was read in."""


def in_batches(found: Iterable[Found]) -> Iterator[list[Found]]:
    """Rows to tokenize together: a token takes about 250 bytes there, most of them for offsets."""
    batch: list[Found] = []
    characters = 0
    for one in found:
        batch.append(one)
        characters += sum(len(message.content) for message in one[1].messages)
        if len(batch) == BATCH or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
