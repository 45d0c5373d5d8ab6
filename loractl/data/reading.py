"""A source of rows -> the conversations in them, and the account of those that are none."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from loractl.data import column_words, rows, sources, thoughts
from loractl.data.columns import SAMPLE
from loractl.data.unread_fields import without_marks
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


class Reader:
    """Reads the rows of one source. The first row decides their format, if that is auto."""

    def __init__(self, name: str, reading: Reading, format: str) -> None:
        self.name, self.reading, self.format = name, reading, format

    def conversations(self, row: sources.Row) -> list[Conversation]:
        """The conversation of a row, or one for each of its answers (`split_turns`); none if it
        belongs to another part. Raises RowError for a bad row, and DataError if the first row has
        no format."""
        if row.error is not None:
            raise rows.RowError(row.error)
        fields, reading = row.fields, self.reading
        try:
            fields = rows.rename(fields, reading.columns)
            if self.format == "auto":
                self.format = _detect_format(self.name, row, fields, reading)
            conversation = rows.read(fields, self.format)
        except rows.RowError as error:
            raise rows.RowError(f"{error}{_other_format(fields, self.format)}") from None
        if reading.train_on == "all":
            conversation = replace(conversation, unread=without_marks(conversation.unread))
        if not reading.takes(conversation):
            return []
        return list(
            thoughts.prepared(
                conversation, reading.thoughts, reading.split_turns, train_on=reading.train_on
            )
        )


def conversations(
    name: str, reading: Reading, on_error: Callable[[str], None]
) -> Iterator["Found"]:
    """Yield (row, conversation, format) for every conversation of the good rows.

    Bad rows are reported to `on_error`.
    """
    reader = Reader(name, reading, reading.format)
    for row in sources.read(name, reading.split):
        try:
            found = reader.conversations(row)
        except rows.RowError as error:
            on_error(f"{row.path}:{row.line}: {error}")
            continue
        for one in found:
            yield row, one, reader.format


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


def in_stretches(source: Iterable[sources.Row]) -> Iterator[list[sources.Row]]:
    """Rows that are read and tokenized together, as many as a batch has."""
    stretch: list[sources.Row] = []
    characters = 0
    for row in source:
        stretch.append(row)
        characters += _characters_of(row.fields)
        if len(stretch) == BATCH or characters >= BATCH_CHARACTERS:
            yield stretch
            stretch, characters = [], 0
    if stretch:
        yield stretch


def _characters_of(fields: Any) -> int:
    """The length of all texts in a row; no recursion, since a row may be nested deeply."""
    characters, left = 0, [fields]
    while left:
        value = left.pop()
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return characters
