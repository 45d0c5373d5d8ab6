"""A source of rows -> tokenized examples in a store, and an account of what happened to them."""

import contextlib
import hashlib
import json
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loractl.data import sources, workers
from loractl.data.account import Account, advice
from loractl.data.reading import Reading
from loractl.data.rendering import Tokenizer
from loractl.data.row_errors import BadRows
from loractl.data.store import Store
from loractl.data.store_cache import Cache
from loractl.data.store_writer import Writer
from loractl.data.stretch import Source
from loractl.errors import DataError


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
    """A hash of all that determines ids and labels: rows, tokenizer, settings and this code."""
    parts = {
        "content": content,
        "name": name,  # appears in messages and in the index
        "reading": asdict(reading),
        "tokenizer": _tokenizer_parts(tokenizer),
        "code": [_code_sha256(), version("transformers"), version("tokenizers")],
    }
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


_OF_PLACE = {"name_or_path", "is_local", "local_files_only", "chat_template"}
"""Settings that say where a tokenizer is, and the template that it came with."""


def _tokenizer_parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """All that decides what a tokenizer makes of a row: its class and settings, which its text as
    tokenizer.json does not hold, and the special tokens, any of which a template may write."""
    backend, kind = getattr(tokenizer, "backend_tokenizer", None), type(tokenizer)
    settings: dict[str, Any] = getattr(tokenizer, "init_kwargs", {})
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "backend": backend.to_str() if backend is not None else repr(tokenizer),
        "settings": {
            name: value
            for name, value in settings.items()
            if name not in _OF_PLACE and not name.endswith("_file")
        },
        "special": dict(getattr(tokenizer, "special_tokens_map", {})),
        "splits_special": bool(getattr(tokenizer, "split_special_tokens", False)),
        "template": tokenizer.chat_template,
    }


def _code_sha256() -> str:
    """A hash of this package's own source: a store made by older code is rebuilt."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


class TooLongError(DataError):
    """Rows are longer than max_length, which is an error; the account has the lengths of all."""

    def __init__(self, message: str, account: Account) -> None:
        super().__init__(message)
        self.account = account


def _tokenise_rows(
    account: Account, tokenizer: Tokenizer, reading: Reading, writer: Writer
) -> None:
    bad, lengths = BadRows(), Counter[int]()
    source = Source(account.path, reading, several=Path(account.path).is_dir())
    with contextlib.closing(workers.parts(source, tokenizer)) as parts:
        for part in parts:
            bad.extend(part.bad)
            if not bad.count:
                lengths.update(part.lengths)
                account.add_(part.account)
                writer.extend(part.examples)
    bad.raise_if_any()
    account.measure_(lengths)
    _refuse_empty(account, reading)


def _refuse_empty(account: Account, reading: Reading) -> None:
    """Raise if rows are too long and that is an error, or if nothing is left to train on."""
    name, dropped = account.path, account.dropped
    limit, cure = f"data.max_length {reading.max_length}", "raise it"
    if reading.is_all_positions:
        limit = f"the {reading.max_length} positions that the model has"
        cure = "split the rows, or use a model with more positions"
    over = f"longer than {limit} (the longest has {account.longest} tokens"
    over += ")" if reading.is_all_positions else f"; {advice(account, reading.positions)})"
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
        message += f" data.too_long: truncate cuts (the longest row has {account.longest} tokens"
        message += ")" if reading.is_all_positions else f"; {advice(account, reading.positions)})"
        message += f"; {cure}"
        raise TooLongError(message, account)
    if not account.rows and reading.held_out is not None:
        raise DataError(
            f"data.eval: a share of {reading.held_out} leaves no row of {name} to"
            f" {'evaluate' if reading.part == 'eval' else 'train'} on; change it"
        )
    if not account.examples:
        raise nothing_to_train_on(name, reading.train_on)


def nothing_to_train_on(name: str, train_on: str) -> DataError:
    """The error for a source whose rows are all left out, since none holds an answer."""
    trains = {"all": "every message", "last": "the last assistant answer"}
    what = trains.get(train_on, "assistant answers")
    return DataError(
        f"{name}: nothing to train on: no row has a trained token (train_on: {train_on} trains"
        f" {what})"
    )
