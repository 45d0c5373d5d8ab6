"""A file -> tokenised examples, and an account of what was read, trained, cut and left out."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loractl.data import rows, sources
from loractl.data.template import TemplateError, Tokenizer, encode
from loractl.errors import DataError
from loractl.records import Example

MOST_LINES = 10


@dataclass(frozen=True)
class Account:
    """What became of a file; goes to data.json."""

    path: str
    sha256: str
    format: str
    rows: int
    examples: int
    tokens: int
    trained_tokens: int
    longest: int  # tokens of the longest row as read
    truncated_lines: list[int]
    dropped_lines: list[int]  # longer than max_length
    untrained_lines: list[int]  # left out: no trained token

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def load(
    path: Path,
    raw: Iterable[sources.Row],
    tokenizer: Tokenizer,
    *,
    format: str,
    max_length: int,
    train_on: str,
    too_long: str,
) -> tuple[list[Example], Account]:
    """Tokenise rows. Raises DataError naming the line of a bad row, or when none can be trained."""
    examples: list[Example] = []
    truncated: list[int] = []
    dropped: list[int] = []
    untrained: list[int] = []
    longest, n_rows = 0, 0
    for row in raw:
        n_rows += 1
        try:
            format = rows.detect(row.fields) if format == "auto" else format
            ids, labels = encode(tokenizer, rows.FORMATS[format](row.fields), train_on=train_on)
        except (rows.RowError, TemplateError) as error:
            raise DataError(f"{path}:{row.line}: {error}{_schema(row, format)}") from None
        longest = max(longest, len(ids))
        if len(ids) > max_length:
            if too_long != "truncate":
                dropped.append(row.line)
                continue
            truncated.append(row.line)
            ids, labels = ids[:max_length], labels[:max_length]
        example = Example(ids, labels, row.line)
        if example.n_trained:
            examples.append(example)
        else:
            untrained.append(row.line)
    over = f"longer than data.max_length {max_length} (the longest has {longest} tokens)"
    if dropped and too_long == "error":
        fix = "raise it, or set data.too_long to truncate or drop"
        raise DataError(f"{path}: {_lines(dropped)} {over}; {fix}")
    if len(dropped) == n_rows:
        raise DataError(f"{path}: all {n_rows} rows are {over}; raise it")
    if not examples:
        raise DataError(
            f"{path}: nothing to train on: no row has a trained token (train_on: {train_on} trains"
            " what the assistant answers)"
        )
    account = Account(
        path=str(path),
        sha256=sources.file_hash(path),
        format=format,
        rows=n_rows,
        examples=len(examples),
        tokens=sum(len(example.ids) for example in examples),
        trained_tokens=sum(example.n_trained for example in examples),
        longest=longest,
        truncated_lines=truncated,
        dropped_lines=dropped,
        untrained_lines=untrained,
    )
    return examples, account


def _schema(row: sources.Row, format: str) -> str:
    """Say when a bad row is a good one of another format than the rows before it."""
    try:
        other = rows.detect(row.fields)
    except rows.RowError:
        return ""
    return f"; the row looks like {other}, the file's rows are {format}" if other != format else ""


def _lines(lines: list[int]) -> str:
    shown = ", ".join(str(line) for line in lines[:MOST_LINES])
    more = f" and {len(lines) - MOST_LINES} more" if len(lines) > MOST_LINES else ""
    return (
        f"{'lines' if len(lines) > 1 else 'line'} {shown}{more} {'are' if len(lines) > 1 else 'is'}"
    )


def warnings(account: Account, *, max_length: int) -> list[str]:
    """What a person should know about an account before training: a line each."""
    notes = []
    for lines, what in (
        (account.truncated_lines, f"cut to {max_length} tokens"),
        (account.dropped_lines, f"left out: longer than {max_length} tokens"),
        (
            account.untrained_lines,
            "left out: no trained token (no assistant answer, or it was cut off)",
        ),
    ):
        if lines:
            notes.append(f"{account.path}: {_lines(lines)} {what}")
    return notes
