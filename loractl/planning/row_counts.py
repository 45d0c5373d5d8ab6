"""Rows and tokens of a data file, counted as training counts them: through the chat template of the
model. Without torch, and for a bare model size estimated."""

from collections.abc import Iterator
from dataclasses import dataclass

from loractl.data import examples
from loractl.data.examples import Reading
from loractl.data.template import TemplateError, Tokenizer, encode_many
from loractl.errors import DataError
from loractl.models.light_tokenizer import load_light
from loractl.planning.known_model import directory_of
from loractl.planning.recommend import Rows
from loractl.records import UNTRAINED, Conversation

CHARACTERS_A_TOKEN = 4  # of English text; other languages and code have fewer
TEMPLATE = 6  # tokens that a chat template adds to each message: role, begin, end, line break


@dataclass(frozen=True)
class Length:
    """The tokens of one row as `train` sees it, before data.max_length, and the trained ones."""

    tokens: int
    trained: int
    format: str  # of the row's source: messages, sharegpt, alpaca, ...


def reading_of(
    *, format: str = "auto", columns: dict[str, str] | None = None, train_on: str = "assistant"
) -> Reading:
    """How to read a whole source for planning; nothing is cut or left out."""
    return Reading(
        format=format, max_length=0, train_on=train_on, too_long="error", columns=columns or {}
    )


def tokenizer_of(model: str) -> Tokenizer | None:
    """The tokenizer of a directory or of a hub id in the cache, without torch; None for a size.

    Raises ModelError.
    """
    directory = directory_of(model)
    return None if directory is None else load_light(directory)


def lengths(path: str, tokenizer: Tokenizer, reading: Reading) -> Iterator[Length]:
    """The length of every row, through the chat template: the same ids as in training.

    Raises DataError for the first row that training would refuse.
    """
    for batch in examples.in_batches(examples.conversations(path, reading, _refuse)):
        conversations = [conversation for _, conversation, _ in batch]
        encoded = encode_many(tokenizer, conversations, train_on=reading.train_on)
        for (row, _, format), result in zip(batch, encoded, strict=True):
            if isinstance(result, TemplateError):
                raise DataError(f"{row.path}:{row.line}: {result}")
            ids, labels, _ = result
            yield Length(len(ids), len(labels) - labels.count(UNTRAINED), format)


def count(path: str, model: str, *, columns: dict[str, str] | None = None) -> Rows:
    """Count rows and tokens; for a bare model size, tokens are estimated from characters, and the
    result says so.

    Raises DataError for rows that cannot be read, ModelError for a tokenizer that cannot.
    """
    reading, tokenizer = reading_of(columns=columns), tokenizer_of(model)
    if tokenizer is None:
        found = examples.conversations(path, reading, _refuse)
        tokens = sorted(_estimate_tokens(conversation) for _, conversation, _ in found)
        counted = (
            f"estimated at {CHARACTERS_A_TOKEN} characters per token, as {model} has no tokenizer,"
            f" plus {TEMPLATE} per message for the chat template"
        )
        used = sum(tokens)
    else:
        found_lengths = list(lengths(path, tokenizer, reading))
        tokens = sorted(one.tokens for one in found_lengths)
        used = sum(one.tokens for one in found_lengths if one.trained)  # others are left out
        counted = f"counted with the tokenizer and chat template of {model}"
    p99 = tokens[min(len(tokens) - 1, int(0.99 * len(tokens)))]
    return Rows(len(tokens), used, tokens[-1], p99, counted, tokens[0])


def _refuse(message: str) -> None:
    raise DataError(message)


def _estimate_tokens(row: Conversation) -> int:
    characters = sum(len(message.content) for message in row.messages)
    around = TEMPLATE * sum(bool(message.role) for message in row.messages)
    return -(-characters // CHARACTERS_A_TOKEN) + around
