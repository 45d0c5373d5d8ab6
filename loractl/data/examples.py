"""A source of rows -> tokenized examples in a store, and an account of what happened to them."""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from loractl.config import strict_yaml
from loractl.data import columns, rows, sources
from loractl.data.account import Account
from loractl.data.store import Cache, Store, Writer
from loractl.data.template import Encoded, TemplateError, Tokenizer, encode_many
from loractl.errors import MOST_SHOWN, DataError
from loractl.records import UNTRAINED, Conversation

SAMPLE = 200
"""Rows from which columns to map are proposed."""
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
    is_all_positions: bool = False  # max_length is all that the model has, so it cannot be raised

    def takes(self, conversation: Conversation) -> bool:
        """Whether a row belongs to the part that is read."""
        if self.held_out is None or self.part == "all":
            return True
        return sources.held_out(conversation, self.held_out) == (self.part == "eval")


def load(
    name: str, tokenizer: Tokenizer, reading: Reading, *, cache: Cache | None = None
) -> tuple[Store, Account]:
    """Tokenize a source, or take its store from the cache.

    Raises DataError for bad rows, naming the first ten, or if no row can be trained on.
    """
    print_of_content = sources.fingerprint(name, reading.split)
    account = Account(path=name, sha256=print_of_content, format=reading.format)

    def make(writer: Writer) -> dict[str, Any]:
        _tokenise_rows(account, tokenizer, reading, writer)
        return {"account": account.as_dict()}

    place = (cache or Cache.default()).open(
        _store_key(print_of_content, name, tokenizer, reading), make
    )
    store = Store(place)
    return store, Account.from_dict({**store.account["account"], "path": name})


def _store_key(content: str, name: str, tokenizer: Tokenizer, reading: Reading) -> str:
    """A hash of all that determines ids and labels: rows, template, settings and this code."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = {
        "content": content,
        "name": name,  # appears in messages and in the index
        "reading": asdict(reading),
        "tokenizer": backend.to_str() if backend is not None else repr(tokenizer),
        "template": tokenizer.chat_template,
        "special": [tokenizer.bos_token, tokenizer.eos_token],
        "code": [_code_sha256(), version("transformers"), version("tokenizers")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _code_sha256() -> str:
    """A hash of this package's own source: a store made by older code is rebuilt."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def conversations(
    name: str, reading: Reading, on_error: Callable[[str], None]
) -> Iterator["Found"]:
    """Yield (row, conversation, format) for every good row of the part that is read.

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
            conversation = rows.FORMATS[format](fields)
        except rows.RowError as error:
            on_error(f"{row.path}:{row.line}: {error}{_other_format(fields, format)}")
            continue
        if reading.takes(conversation):
            yield row, conversation, format


def _detect_format(name: str, row: sources.Row, fields: Mapping[str, Any], reading: Reading) -> str:
    """The format of a source, from its first row. Raises DataError if that has none, since every
    other row would fail the same way; with the columns to map, if some can be proposed."""
    try:
        return rows.detect(fields, reading.columns)
    except rows.RowError as error:
        read = islice(sources.read(name, reading.split), SAMPLE)
        proposed = columns.propose([one.fields for one in read if one.error is None])
        raise DataError(f"{row.path}:{row.line}: {error}{_mapping(proposed)}") from None


def _mapping(proposed: Mapping[str, str]) -> str:
    """How to map columns, in a config and on a command line."""
    if not proposed:
        return ""
    keys = ", ".join(f"{ours}: {strict_yaml.scalar(name)}" for ours, name in proposed.items())
    options = " ".join(
        f"--columns {shlex.quote(f'{ours}={name}')}" for ours, name in proposed.items()
    )
    return f"; map them with data.columns: {{{keys}}} in the config, or {options}"


def _other_format(fields: Any, format: str) -> str:
    """A hint for a bad row that would be good in another format than the rows before it."""
    try:
        other = rows.detect(fields)
    except rows.RowError:
        return ""
    if other == format or format == "auto":
        return ""
    return f"; the row looks like {other}, but the file's rows are {format}"


class TooLongError(DataError):
    """Rows are longer than max_length, which is an error; the account has the lengths of all."""

    def __init__(self, message: str, account: Account) -> None:
        super().__init__(message)
        self.account = account


Found = tuple[sources.Row, Conversation, str]
"""A row, the conversation it holds, and the format it was read in."""


class _BadRows:
    """Keeps the first ten messages and counts the rest."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.count = 0

    def add(self, message: str) -> None:
        self.count += 1
        if len(self.messages) < MOST_SHOWN:
            self.messages.append(message)

    def raise_if_any(self) -> None:
        if not self.count:
            return
        if self.count > len(self.messages):
            shown = len(self.messages)
            self.messages[-1] += f"; and {self.count - shown} more bad rows ({self.count} in all)"
        raise DataError(*self.messages)


def _tokenise_rows(
    account: Account, tokenizer: Tokenizer, reading: Reading, writer: Writer
) -> None:
    bad, lengths = _BadRows(), Counter[int]()
    several = Path(account.path).is_dir()
    found = conversations(account.path, reading, bad.add)
    for batch in in_batches(found):
        encoded = encode_many(
            tokenizer, [conversation for _, conversation, _ in batch], train_on=reading.train_on
        )
        for (row, _, format), result in zip(batch, encoded, strict=True):
            account.rows, account.format = account.rows + 1, format
            if isinstance(result, TemplateError):
                bad.add(f"{row.path}:{row.line}: {result}")
            elif not bad.count:
                lengths[len(result[0])] += 1
                where = f"{row.path}:{row.line}" if several else row.line
                _keep_example(account, writer, reading, result, row, where)
    bad.raise_if_any()
    account.measure_(lengths)
    _refuse_empty(account, reading)


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


def _keep_example(
    account: Account,
    writer: Writer,
    reading: Reading,
    encoded: Encoded,
    row: sources.Row,
    where: int | str,
) -> None:
    """Write one example, cut or left out as the settings say."""
    ids, labels, weights = encoded
    trained = _n_trained(labels)
    if len(ids) > reading.max_length:
        ids, labels = ids[: reading.max_length], labels[: reading.max_length]
        weights = weights and weights[: reading.max_length]
        if (kept := _n_trained(labels)) < trained:
            account.lost_answer.add(where)
        if reading.too_long != "truncate":
            account.dropped.add(where)
            return
        account.truncated.add(where)
        account.lost_whole += bool(trained and not kept)
        trained = kept
    if not trained:
        account.untrained.add(where)
        return
    writer.append(ids, labels, row.path, row.line, weights=weights)
    account.examples += 1
    account.tokens += len(ids)
    account.trained_tokens += trained


def _n_trained(labels: list[int]) -> int:
    return len(labels) - labels.count(UNTRAINED)


def _refuse_empty(account: Account, reading: Reading) -> None:
    """Raise if rows are too long and that is an error, or if nothing is left to train on."""
    name, dropped = account.path, account.dropped
    limit, cure = f"data.max_length {reading.max_length}", "raise it"
    if reading.is_all_positions:
        limit = f"the {reading.max_length} positions that the model has"
        cure = "split the rows, or use a model with more positions"
    over = f"longer than {limit} (the longest has {account.longest}"
    over += f" tokens; {account.keeps_99_percent} would keep 99% of the rows)"
    if dropped.count and reading.too_long == "error":
        fix = f"{cure}, or set data.too_long to truncate or drop"
        lost = f"{account.lost_answer.count} of them would lose tokens of an answer"
        message = f"{name}: {dropped} {dropped.are} {over}; {lost}; {fix}"
        raise TooLongError(message, account)
    if dropped.count and dropped.count == account.rows:
        raise TooLongError(f"{name}: all {account.rows} rows are {over}; {cure}", account)
    if account.lost_whole and not account.examples:
        rows = f"{account.lost_whole} of {account.rows} {'rows' if account.rows > 1 else 'row'}"
        message = f"{name}: nothing to train on: the whole answer of {rows} is past {limit}, where"
        message += f" data.too_long: truncate cuts (the longest row has {account.longest} tokens;"
        message += f" {account.keeps_99_percent} would keep 99% of the rows whole); {cure}"
        raise TooLongError(message, account)
    if not account.rows and reading.held_out is not None:
        raise DataError(
            f"data.eval: a share of {reading.held_out} leaves no row of {name} to"
            f" {'evaluate' if reading.part == 'eval' else 'train'} on; change it"
        )
    if not account.examples:
        raise DataError(
            f"{name}: nothing to train on: no row has a trained token (train_on:"
            f" {reading.train_on} trains assistant answers)"
        )
