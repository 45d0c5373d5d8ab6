"""Rows and tokens of a data file, counted as training counts them: through the chat template of the
model. Without torch, and for a bare model size estimated."""

from collections.abc import Iterator
from dataclasses import dataclass

from loractl.data import examples
from loractl.data.chat_templates import with_stand_in
from loractl.data.encoding import encode_many
from loractl.data.reading import Reading, conversations, in_batches
from loractl.data.rendering import TemplateError, Tokenizer
from loractl.data.template import is_trained
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
    for batch in in_batches(conversations(path, reading, _refuse)):
        encoded = encode_many(
            tokenizer, [conversation for _, conversation, _ in batch], train_on=reading.train_on
        )
        for (row, _, format), result in zip(batch, encoded, strict=True):
            if isinstance(result, TemplateError):
                raise DataError(f"{row.path}:{row.line}: {result}")
            ids, labels = result.ids, result.labels
            yield Length(len(ids), len(labels) - labels.count(UNTRAINED), format)


def count(path: str, model: str, *, columns: dict[str, str] | None = None) -> Rows:
    """Count rows and tokens; for a bare model size, tokens are estimated from characters, and the
    result says so.

    Raises DataError for rows that cannot be read or hold no answer, ModelError for a tokenizer that
    cannot be read.
    """
    reading, tokenizer, template = reading_of(columns=columns), tokenizer_of(model), None
    if tokenizer is None:
        tokens, is_answered = [], False
        for _, conversation, _ in conversations(path, reading, _refuse):
            tokens.append(_estimate_tokens(conversation))
            is_answered = is_answered or is_trained(conversation.messages, reading.train_on)
        used = sum(tokens)
        counted = (
            f"estimated at {CHARACTERS_A_TOKEN} characters per token, as {model} has no tokenizer,"
            f" plus {TEMPLATE} per message for the chat template"
        )
    else:
        found, template = with_stand_in(
            tokenizer, lambda other: list(lengths(path, other, reading))
        )
        tokens = [one.tokens for one in found]
        used = sum(one.tokens for one in found if one.trained)  # others are left out
        is_answered = used > 0
        counted = f"counted with the tokenizer and chat template of {model}"
        if template is not None:
            counted = f"counted with the tokenizer of {model} and data.chat_template: {template}"
    if not is_answered:
        raise examples.nothing_to_train_on(path, reading.train_on)
    tokens.sort()
    p99 = tokens[min(len(tokens) - 1, int(0.99 * len(tokens)))]
    return Rows(len(tokens), used, tokens[-1], p99, counted, tokens[0], template)


def _refuse(message: str) -> None:
    raise DataError(message)


def _estimate_tokens(row: Conversation) -> int:
    characters = sum(len(message.content) for message in row.messages)
    around = TEMPLATE * sum(bool(message.role) for message in row.messages)
    return -(-characters // CHARACTERS_A_TOKEN) + around
