"""A stretch of rows -> its examples and its account. What comes of a stretch depends on nothing but
its rows, so several processes may tokenize a source (workers.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from loractl.data import message_forms, row_notes, written
from loractl.data.account import Account
from loractl.data.encoding import Encoded, encode_many
from loractl.data.reading import Found, Reader, Reading, in_batches
from loractl.data.rendering import TemplateError, Tokenizer
from loractl.data.row_errors import BadRows, RowError
from loractl.data.row_files import Row
from loractl.data.store_writer import Packed
from loractl.data.template import trained_answers
from loractl.records import UNTRAINED, Conversation, Message


@dataclass(frozen=True)
class Source:
    """Where rows come from and how they are read."""

    name: str
    reading: Reading
    several: bool  # whether its rows are in several files, so that a line alone tells nothing


@dataclass
class Part:
    """What came of a stretch of rows."""

    account: Account
    bad: BadRows = field(default_factory=BadRows)
    lengths: list[int] = field(default_factory=list)  # of the rows as read, in tokens
    examples: Packed = field(default_factory=Packed)


def tokenise(
    rows: Sequence[Row], source: Source, tokenizer: Tokenizer, format: str
) -> tuple[Part, str]:
    """Tokenize a stretch of a source; also the format of its rows, which is auto only until the
    first row has decided it. Raises DataError."""
    # What a template does with a row may be remembered of another one: only of this stretch.
    message_forms.forget_()
    written.forget_()
    reading = source.reading
    reader = Reader(source.name, reading, format)
    tokens = row_notes.template_tokens(tokenizer)
    find_odd, find_unread = row_notes.finder(tokens), row_notes.unread_finder(tokenizer)
    part = Part(Account(source.name, "", reading.format))
    read = [(row, _conversations_or_error(reader, row)) for row in rows]
    results = _encoded(read, reading, tokenizer)
    for row, found in read:
        place = f"{row.path}:{row.line}"
        where = place if source.several else row.line
        if isinstance(found, RowError):
            part.bad.add(f"{place}: {found}")
            continue
        if found:
            part.account.rows, part.account.format = part.account.rows + 1, reader.format
            whole = found[-1]  # with every message, also where each answer is an example
            part.account.note_row_(where, whole, find_odd(whole), find_unread(whole))
        doubled, texts = "", []
        for conversation in found:
            result = next(results)
            if isinstance(result, TemplateError):
                part.bad.add(f"{place}: {result}")
            else:
                texts.append(result.text)
                answers = _answers(conversation, reading)
                _keep_result(part, reading, answers, result, row, where)
                doubled = doubled or row_notes.doubled_end(answers, result.text.text, tokens)
        part.account.note_doubled_(where, doubled)
        part.account.note_rendered_(texts)
    return part, reader.format


def _conversations_or_error(reader: Reader, row: Row) -> list[Conversation] | RowError:
    try:
        return reader.conversations(row)
    except RowError as error:
        return RowError(str(error))  # without what it holds


def _encoded(
    read: Sequence[tuple[Row, list[Conversation] | RowError]],
    reading: Reading,
    tokenizer: Tokenizer,
) -> Iterator[Encoded | TemplateError]:
    """The results of all conversations in turn."""
    good: Iterator[Found] = (
        (row, one, "") for row, found in read if not isinstance(found, RowError) for one in found
    )
    for batch in in_batches(good):
        yield from encode_many(
            tokenizer,
            [conversation for _, conversation, _ in batch],
            train_on=reading.train_on,
            thoughts=reading.thoughts,
        )


def _keep_result(
    part: Part,
    reading: Reading,
    answers: Sequence[Message],
    result: Encoded,
    row: Row,
    where: int | str,
) -> None:
    part.lengths.append(len(result.ids))
    if _keep_example(part, reading, result, row, where) and any(map(_is_empty, answers)):
        part.account.empty.add(where)


def _keep_example(
    part: Part, reading: Reading, encoded: Encoded, row: Row, where: int | str
) -> bool:
    """Keep one example, cut or left out as the settings say; whether it was kept."""
    account = part.account
    ids, labels, weights = encoded.ids, encoded.labels, encoded.weights
    trained = _n_trained(labels)
    if len(ids) > reading.max_length:
        ids, labels = ids[: reading.max_length], labels[: reading.max_length]
        weights = weights and weights[: reading.max_length]
        if (kept := _n_trained(labels)) < trained:
            account.lost_answer.add(where)
        if reading.too_long != "truncate":
            account.dropped.add(where)
            return False
        account.truncated.add(where)
        account.lost_whole += bool(trained and not kept)
        trained = kept
    if not trained:
        account.untrained.add(where)
        return False
    part.examples.add(ids, labels, row.path, row.line, weights)
    account.examples += 1
    account.tokens += len(ids)
    account.trained_tokens += trained
    return True


def _answers(conversation: Conversation, reading: Reading) -> list[Message]:
    """The answers that are trained."""
    numbers = trained_answers(conversation.messages, reading.train_on)
    return [conversation.messages[number] for number in numbers]


def _is_empty(message: Message) -> bool:
    return not message.content.strip() and not message.tool_calls


def _n_trained(labels: list[int]) -> int:
    return len(labels) - labels.count(UNTRAINED)
