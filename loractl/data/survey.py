"""What a file of rows holds, before there is a config: format, columns, lengths, kinds of answers.

Rows are read and rendered by the same code as in training, so lengths are those that training
finds. Without a tokenizer they are estimated.
"""

import contextlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from loractl.data import column_words, rows, sources
from loractl.data.chat_templates import TOOLS, apply_settings, with_stand_in
from loractl.data.columns import SAMPLE, propose
from loractl.data.encoding import encode_many
from loractl.data.examples import nothing_to_train_on
from loractl.data.reading import Found, Reading, conversations, in_batches
from loractl.data.rendering import TemplateError, Tokenizer, writes_tools
from loractl.data.row_errors import BadRows
from loractl.data.template import is_trained
from loractl.errors import DataError
from loractl.records import UNTRAINED, Conversation

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
    unused: tuple[str, ...]  # columns that the format does not read
    lengths: list[int]  # tokens of every row that would be trained on, sorted
    places: list[float] = field(repr=False)  # of the same rows between 0 and 1, in the same order
    estimated: bool  # lengths are estimates
    answers: int  # different answers
    turns: int  # most assistant messages in one row
    shape: str  # one of SHAPES: what the rows look like
    note: str = ""  # what seems odd about the columns
    drops_tools: bool = False  # most rows declare tools, and the template does not write them
    chat_template: str | None = None  # a built-in one that the rows need in place of the model's
    why_template: str = ""  # why they need it

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

    def n_different_below(self, fraction: float) -> int:
        """Those of them with a content of their own: copies are held out together."""
        return len({place for place in self.places if place < fraction})

    def within(self, length: int) -> "Survey":
        """The rows of at most this many tokens."""
        fitting = bisect_right(self.lengths, length)
        return replace(self, lengths=self.lengths[:fitting], places=self.places[:fitting])


def survey(
    path: str,
    tokenizer: Tokenizer | None,
    *,
    columns: Mapping[str, str] | None = None,
    train_on: str = "assistant",
) -> Survey:
    """Read all rows and measure them; `columns` are chosen unless given.

    Raises DataError for rows that training would refuse, and where the columns leave open what is
    to be trained on.
    """
    if tokenizer is None:
        return _measure_rows(path, None, columns, train_on)
    found, name = with_stand_in(
        tokenizer, lambda other: _measure_rows(path, other, columns, train_on)
    )
    if name is None and found.drops_tools:
        other = apply_settings(tokenizer, TOOLS, {})
        with contextlib.suppress(DataError):
            found, name = _measure_rows(path, other, columns, train_on), TOOLS
    why = "the model has no chat template, which these rows need; or a Jinja file"
    if tokenizer.chat_template:
        why = "the model's own leaves out the tools or calls of these rows; or a Jinja file"
    return replace(found, chat_template=name, why_template=why if name else "")


def _measure_rows(
    path: str, tokenizer: Tokenizer | None, columns: Mapping[str, str] | None, train_on: str
) -> Survey:
    sample = list(islice(sources.read(path), SAMPLE))
    chosen = dict(columns) if columns else _choose(path, sample)
    reading = Reading("auto", max_length=2, train_on=train_on, too_long="error", columns=chosen)
    bad, seen = BadRows(), _Seen()
    for batch in in_batches(conversations(path, reading, bad.add)):
        seen.add_(batch, _measure(batch, tokenizer, train_on, bad))
    bad.raise_if_any()
    if not seen.measured:
        raise nothing_to_train_on(path, train_on)
    seen.measured.sort()
    return Survey(
        path=path,
        format=seen.format,
        columns=chosen,
        unused=_unused(sample, seen.format, chosen),
        lengths=[length for length, _ in seen.measured],
        places=[place for _, place in seen.measured],
        estimated=tokenizer is None,
        answers=len(seen.answers),
        turns=seen.turns,
        shape=seen.shape(),
        note=column_words.headerless(sample),
        drops_tools=tokenizer is not None
        and seen.shape() == "tool-calls"
        and seen.drops(tokenizer),
    )


def choose_columns(path: str) -> dict[str, str]:
    """The proposed `data.columns`. Raises DataError if the rows leave open what to train on."""
    return _choose(path, list(islice(sources.read(path), SAMPLE)))


def _choose(path: str, sample: Sequence[sources.Row]) -> dict[str, str]:
    fields = [row.fields for row in sample if row.error is None]
    chosen = propose(fields) if fields else {}
    if fields and (why := column_words.doubt(fields, chosen)):
        raise DataError(f"{path}: {why}")
    return chosen


def _unused(
    sample: Sequence[sources.Row], format: str, columns: Mapping[str, str]
) -> tuple[str, ...]:
    """The columns that the format does not read; an index without a name is none."""
    read = {*columns.values(), *(rows.reads(format) - columns.keys())}
    read |= {name.partition(".")[0] for name in columns.values()}
    fields = next((row.fields for row in sample if row.error is None), {})
    return tuple(name for name in fields if name.strip() and name not in read)


def _measure(
    batch: list[Found], tokenizer: Tokenizer | None, train_on: str, bad: BadRows
) -> Iterator[int | None]:
    """Tokens of each row; None if training leaves it out. What the chat template refuses goes to
    `bad`."""
    if tokenizer is None:
        for _, conversation, _ in batch:
            trained = is_trained(conversation.messages, train_on)
            yield _estimated_length(conversation) if trained else None
        return
    found = encode_many(
        tokenizer, [conversation for _, conversation, _ in batch], train_on=train_on
    )
    for (row, _, _), encoded in zip(batch, found, strict=True):
        if isinstance(encoded, TemplateError):
            bad.add(f"{row.path}:{row.line}: {encoded}")
            yield None
            continue
        yield len(encoded.ids) if encoded.labels.count(UNTRAINED) < len(encoded.labels) else None


def _estimated_length(conversation: Conversation) -> int:
    n_bytes = sum(len(message.content.encode()) for message in conversation.messages)
    n_bytes += sum(len(json.dumps(list(m.tool_calls))) for m in conversation.messages)
    n_bytes += len(json.dumps(list(conversation.tools)))
    return -(-n_bytes // BYTES_A_TOKEN) + AROUND * len(conversation.messages)


class _Seen:
    """What has been counted so far."""

    def __init__(self) -> None:
        self.format = ""
        self.measured: list[tuple[int, float]] = []  # (tokens, place)
        self.answers: Counter[int] = Counter()  # by hash: a file may have millions
        self.longest_answer = 0
        self.json = self.tools = self.turns = 0
        self.declaring: Conversation | None = None  # the first row that declares tools

    def add_(self, batch: Iterable[Found], lengths: Iterable[int | None]) -> None:
        for (_, conversation, format), length in zip(batch, lengths, strict=True):
            self.format = format
            if length is None:
                continue
            self.measured.append((length, sources.place_of(conversation)))
            said = [m for m in conversation.messages if m.role == "assistant"]
            text = said[-1].content.strip() if said else ""
            self.answers[hash(text)] += 1
            self.longest_answer = max(self.longest_answer, len(text))
            self.json += _is_json(text)
            self.tools += bool(conversation.tools or any(m.tool_calls for m in said))
            if conversation.tools and self.declaring is None:
                self.declaring = conversation
            self.turns = max(self.turns, len(said))

    def drops(self, tokenizer: Tokenizer) -> bool:
        """Whether the tools of a row do not reach the model."""
        row = self.declaring
        if row is None or not tokenizer.chat_template:
            return row is not None
        return not writes_tools(tokenizer, row.messages, row.tools)

    def shape(self) -> str:
        n_rows = len(self.measured)
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
