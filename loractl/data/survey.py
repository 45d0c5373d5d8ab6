"""What a file of rows holds, before there is a config: format, columns, lengths, kinds of answers.

Rows are read and rendered by the same code as in training, so lengths are those that training
finds. Without a tokenizer they are estimated.
"""

import contextlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from loractl.data import column_words, rows, sources
from loractl.data.chat_templates import TOOLS, apply_settings, with_stand_in
from loractl.data.columns import SAMPLE, propose
from loractl.data.encoding import encode_many
from loractl.data.examples import nothing_to_train_on
from loractl.data.reading import Found, Reading, conversations, in_batches
from loractl.data.rendering import TemplateError, Tokenizer
from loractl.data.row_errors import BadRows
from loractl.data.row_shapes import Seen
from loractl.data.template import is_trained
from loractl.errors import DataError
from loractl.records import UNTRAINED, Conversation

BYTES_A_TOKEN = 4
"""Of English text; other languages and code have fewer."""
AROUND = 8
"""Tokens that a chat template adds to each message, when they are estimated."""
SHAPES = ("classification", "chat", "json-extraction", "tool-calls", "continued-pretraining")


_WHY = {
    "keep": "the reasoning of the rows is written where the chat template reads it",
    "drop": "trained without the reasoning of the rows, which the chat template cannot write",
}
KEPT = (("keep", False), ("keep", True), ("drop", False))
"""data.thoughts and data.split_turns, by how much of a row's reasoning they train."""


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
    thoughts: str = "auto"  # data.thoughts, where the template would lose trained reasoning
    split_turns: bool = False  # with it

    @property
    def choices(self) -> list[tuple[str, Any, str]]:
        """(key, value, why) of the settings that make a template write these rows."""
        found: list[tuple[str, Any, str]] = []
        if self.chat_template is not None:
            found.append(("data.chat_template", self.chat_template, self.why_template))
        if self.thoughts != "auto":
            found.append(("data.thoughts", self.thoughts, _WHY[self.thoughts]))
        if self.split_turns:
            why = "an example of each answer: the template writes only the last one's reasoning"
            found.append(("data.split_turns", True, why))
        return found

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

    def measure(other: Tokenizer) -> Survey:
        return _measure_kept(path, other, columns, train_on)

    found, name = with_stand_in(tokenizer, measure)
    if name is None and found.drops_tools:
        other = apply_settings(tokenizer, TOOLS, {})
        with contextlib.suppress(DataError):
            found, name = measure(other), TOOLS
    why = "the model has no chat template, which these rows need; or a Jinja file"
    if tokenizer.chat_template:
        why = "the model's own leaves out the tools or calls of these rows; or a Jinja file"
    return replace(found, chat_template=name, why_template=why if name else "")


def _measure_kept(
    path: str, tokenizer: Tokenizer, columns: Mapping[str, str] | None, train_on: str
) -> Survey:
    """The rows measured with the settings for reasoning that lose the least of it, if any are
    needed. Raises DataError."""
    try:
        return _measure_rows(path, tokenizer, columns, train_on)
    except DataError as error:
        if not tokenizer.chat_template or "data.thoughts" not in str(error):
            raise
        for kept in KEPT:
            with contextlib.suppress(DataError):
                return _measure_rows(path, tokenizer, columns, train_on, kept)
        raise


def _measure_rows(
    path: str,
    tokenizer: Tokenizer | None,
    columns: Mapping[str, str] | None,
    train_on: str,
    kept: tuple[str, bool] = ("auto", False),
) -> Survey:
    sample = list(islice(sources.read(path), SAMPLE))
    chosen = dict(columns) if columns else _choose(path, sample)
    thoughts, split_turns = kept
    reading = Reading(
        "auto",
        max_length=2,
        train_on=train_on,
        too_long="error",
        columns=chosen,
        thoughts=thoughts,
        split_turns=split_turns,
    )
    bad, seen = BadRows(), Seen()
    for batch in in_batches(conversations(path, reading, bad.add)):
        seen.add_(batch, _measure(batch, tokenizer, reading, bad))
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
        thoughts=thoughts,
        split_turns=split_turns,
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
    batch: list[Found], tokenizer: Tokenizer | None, reading: Reading, bad: BadRows
) -> Iterator[int | None]:
    """Tokens of each row; None if training leaves it out. What the chat template refuses goes to
    `bad`."""
    if tokenizer is None:
        for _, conversation, _ in batch:
            trained = is_trained(conversation.messages, reading.train_on)
            yield _estimated_length(conversation) if trained else None
        return
    found = encode_many(
        tokenizer,
        [conversation for _, conversation, _ in batch],
        train_on=reading.train_on,
        thoughts=reading.thoughts,
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
