"""What a file of rows holds, before there is a config: format, columns, lengths, kinds of answers.

Rows are read and rendered by the same code as in training, so lengths are those that training
finds. Without a tokenizer they are estimated.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from loractl.data import columns as proposals
from loractl.data import rows, sources
from loractl.data.examples import Found, Reading, conversations, in_batches
from loractl.data.template import TemplateError, Tokenizer, encode_many
from loractl.errors import MOST_SHOWN, DataError
from loractl.records import UNTRAINED, Conversation

SAMPLE = 200
"""Rows whose columns are looked at."""
BYTES_A_TOKEN = 4
"""Of English text; other languages and code have fewer."""
AROUND = 8
"""Tokens that a chat template adds to each message, when they are estimated."""
SHAPES = ("classification", "chat", "json-extraction", "tool-calls", "continued-pretraining")
MOST_LABELS = 50
"""Different answers of a classification, at most; each must also occur three times on average."""


@dataclass(frozen=True)
class Survey:
    """What is known about the rows of a source."""

    path: str
    format: str
    columns: dict[str, str]  # as in data.columns
    unused: tuple[str, ...]  # columns of a table that the format does not read
    lengths: list[int]  # tokens of every row, sorted
    places: list[float] = field(repr=False)  # of every row between 0 and 1, sorted
    estimated: bool  # lengths are estimates
    answers: int  # different answers
    turns: int  # most assistant messages in one row
    shape: str  # one of SHAPES: what the rows look like

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return self.lengths[-1]

    def n_below(self, fraction: float) -> int:
        """The rows that data.eval: FRACTION holds out."""
        return sum(place < fraction for place in self.places)


def survey(path: str, tokenizer: Tokenizer | None, *, train_on: str = "assistant") -> Survey:
    """Read all rows and measure them. Raises DataError for rows that training would refuse."""
    columns, unused = choose_columns(path)
    reading = Reading("auto", max_length=2, train_on=train_on, too_long="error", columns=columns)
    bad: list[str] = []
    seen = _Seen()
    for batch in in_batches(conversations(path, reading, bad.append)):
        seen.add_(batch)
        for length in _measure(batch, tokenizer, train_on, bad):
            seen.lengths.append(length)
    if bad:
        more = [f"and {len(bad) - MOST_SHOWN} more bad rows"] if len(bad) > MOST_SHOWN else []
        raise DataError(*bad[:MOST_SHOWN], *more)
    return Survey(
        path=path,
        format=seen.format,
        columns=columns,
        unused=unused if seen.format != "messages" else (),
        lengths=sorted(seen.lengths),
        places=sorted(seen.places),
        estimated=tokenizer is None,
        answers=len(seen.answers),
        turns=seen.turns,
        shape=seen.shape(),
    )


def choose_columns(path: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The proposed `data.columns`, and the columns that stay unused then."""
    sample = [row.fields for row in islice(sources.read(path), SAMPLE) if row.error is None]
    if not sample:
        return {}, ()
    columns = proposals.propose(sample)
    read = set(columns.values()) | set(rows.FIELDS)
    return columns, tuple(name for name in sample[0] if name not in read)


def _measure(
    batch: list[Found], tokenizer: Tokenizer | None, train_on: str, bad: list[str]
) -> Iterator[int]:
    """Tokens of each row; what the chat template refuses goes to `bad`."""
    if tokenizer is None:
        yield from (_estimated_length(conversation) for _, conversation, _ in batch)
        return
    found = encode_many(
        tokenizer, [conversation for _, conversation, _ in batch], train_on=train_on
    )
    for (row, _, _), encoded in zip(batch, found, strict=True):
        if isinstance(encoded, TemplateError):
            bad.append(f"{row.path}:{row.line}: {encoded}")
            continue
        labels = encoded.labels
        if labels.count(UNTRAINED) < len(labels):  # else training leaves the row out
            yield len(encoded.ids)


def _estimated_length(conversation: Conversation) -> int:
    n_bytes = sum(len(message.content.encode()) for message in conversation.messages)
    n_bytes += sum(len(json.dumps(list(m.tool_calls))) for m in conversation.messages)
    n_bytes += len(json.dumps(list(conversation.tools)))
    return -(-n_bytes // BYTES_A_TOKEN) + AROUND * len(conversation.messages)


class _Seen:
    """What has been counted so far."""

    def __init__(self) -> None:
        self.format = ""
        self.lengths: list[int] = []
        self.places: list[float] = []
        self.answers: Counter[int] = Counter()  # by hash: a file may have millions
        self.longest_answer = 0
        self.json = self.tools = self.turns = 0

    def add_(self, batch: Iterable[Found]) -> None:
        for _, conversation, format in batch:
            self.format = format
            self.places.append(sources.place_of(conversation))
            said = [m for m in conversation.messages if m.role == "assistant"]
            text = said[-1].content.strip() if said else ""
            self.answers[hash(text)] += 1
            self.longest_answer = max(self.longest_answer, len(text))
            self.json += _is_json(text)
            self.tools += bool(conversation.tools or any(m.tool_calls for m in said))
            self.turns = max(self.turns, len(said))

    def shape(self) -> str:
        n_rows = len(self.places)
        if self.format == "text":
            return "continued-pretraining"
        if 2 * self.tools > n_rows:
            return "tool-calls"
        if self.turns == 1 and self.json == n_rows:
            return "json-extraction"
        few = 1 < len(self.answers) <= min(MOST_LABELS, n_rows / 3)
        if self.turns == 1 and few and self.longest_answer < 100:
            return "classification"
        return "chat"


def _is_json(text: str) -> bool:
    if text[:1] not in ("{", "["):
        return False
    try:
        parsed: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict | list)
