"""Rows and tokens of a data file, counted with the model's tokenizer.json, without torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loractl.data import rows as formats
from loractl.data import sources
from loractl.errors import DataError, ModelError
from loractl.planning.known_model import directory_of
from loractl.planning.recommend import Rows
from loractl.records import Conversation

CHARACTERS_A_TOKEN = 4  # of English text; other languages and code have fewer
TEMPLATE = 6  # tokens that a chat template adds to each message: role, begin, end, line break


def count(path: str, model: str) -> Rows:
    """Count rows and tokens; for a bare model size, tokens are estimated from characters, and the
    result says so.

    Raises DataError for rows that cannot be read, ModelError for a tokenizer that cannot.
    """
    tokenizer = _read_tokenizer(model)
    lengths = []
    read: Callable[[formats.Fields], Conversation] | None = None
    for row in sources.read(path):
        if row.error is not None:
            raise DataError(f"{path}:{row.line}: {row.error}")
        try:
            read = read or formats.FORMATS[formats.detect(row.fields)]
            messages = read(row.fields).messages
        except formats.RowError as error:
            raise DataError(f"{path}:{row.line}: {error}") from None
        texts = [message.content for message in messages]
        around = TEMPLATE * sum(bool(message.role) for message in messages)
        if tokenizer is None:
            lengths.append(-(-sum(map(len, texts)) // CHARACTERS_A_TOKEN) + around)
        else:
            lengths.append(sum(len(tokenizer.encode(text).ids) for text in texts) + around)
    lengths.sort()
    how = (
        f"estimated at {CHARACTERS_A_TOKEN} characters per token, as {model} has no tokenizer"
        if tokenizer is None
        else f"counted with the tokenizer of {model}"
    )
    p99 = lengths[min(len(lengths) - 1, int(0.99 * len(lengths)))]
    counted = f"{how}, plus {TEMPLATE} per message for the chat template"
    return Rows(len(lengths), sum(lengths), lengths[-1], p99, counted)


def _read_tokenizer(model: str) -> Any:
    directory = directory_of(model)
    if directory is None:
        return None
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path}: not found; it is needed to count tokens")
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(_without_limits(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{path}: cannot be read: {error}") from None


def _without_limits(path: Path) -> str:
    """A tokenizer.json without truncation and padding, which would hide how long rows are."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return json.dumps({**content, "truncation": None, "padding": None})
