"""From the `data` section to examples: every source tokenized, held-out rows kept apart."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loractl.config.settings import DataSection, SourceSection
from loractl.data import beyond, examples, rows
from loractl.data.account import Account
from loractl.data.reading import Reading
from loractl.data.rendering import Tokenizer
from loractl.data.store import Mixture, Store, tokens_sha256
from loractl.data.store_cache import Cache
from loractl.errors import ConfigError
from loractl.records import Example
from loractl.text import closest


@dataclass(frozen=True)
class Data:
    """Tokenized rows and the account of where they came from."""

    train: Sequence[Example]
    held_out: Sequence[Example]  # may be empty
    retain: Sequence[Example]  # general text, never trained on; may be empty
    accounts: dict[str, Account]  # "train" and "eval"; in a mixture "train[0]", "train[1]", ...
    parts: tuple[tuple[int, float], ...]  # in a mixture: (examples, weight) of each source
    tokens_sha256: str  # of all ids, and of which ones are trained

    def of_train(self) -> list[Account]:
        return [one for name, one in self.accounts.items() if name.startswith("train")]

    def require_rows(self, tokenizer: Tokenizer, n_rows: int | None) -> None:
        """Raise DataError if a token of a row is beyond an embedding of `n_rows`."""
        for examples_ in (self.train, self.held_out, self.retain) if n_rows else ():
            beyond.require_rows(examples_, tokenizer, n_rows or 0, cure=beyond.IN_TRAINING)


def sources_of(data: DataSection) -> list[SourceSection]:
    """The training sources as a list; a single path is one source of weight 1."""
    if isinstance(data.train, list):
        return data.train
    return [SourceSection(path=data.train, format=data.format)]


def held_out_sources(data: DataSection) -> list[SourceSection]:
    """The held-out sources that are not a share of the training rows."""
    if isinstance(data.eval, list):
        return [SourceSection(path=o.path, format=o.format, split=o.split) for o in data.eval]
    return [SourceSection(path=data.eval)] if isinstance(data.eval, str) else []


def load_data(
    data: DataSection, tokenizer: Tokenizer, *, max_length: int, positions: int | None = None
) -> Data:
    """Read and tokenize the training and held-out rows, or take them from the cache.

    `positions`: those of the model, if it has a limit. Raises DataError.
    """
    cache = Cache.default()
    _require_fields(data.columns)

    def read(source: SourceSection, part: str, *, whole: bool = False) -> tuple[Store, Account]:
        reading = replace(_reading_of(data, source, part, max_length), positions=positions)
        if whole:
            reading = replace(
                reading, train_on="all", too_long="truncate", columns={}, split_turns=False
            )
        store, account = examples.load(source.path, tokenizer, reading, cache=cache)
        account.weight = source.weight
        return store, account

    listed = sources_of(data)
    several = len(listed) > 1
    stores: list[Store] = []
    held: list[Store] = []
    accounts: dict[str, Account] = {}
    for number, source in enumerate(listed):
        place = f"[{number}]" if several else ""
        store, accounts[f"train{place}"] = read(source, "train")
        stores.append(store)
        if isinstance(data.eval, float):
            store, accounts[f"eval{place}"] = read(source, "eval")
            held.append(store)
    apart = held_out_sources(data)
    for number, source in enumerate(apart):
        place = f"[{number}]" if len(apart) > 1 else ""
        store, accounts[f"eval{place}"] = read(source, "all")
        held.append(store)
    retain: Sequence[Example] = []
    if data.retain is not None:
        general = SourceSection(path=data.retain, format="auto")
        retain, accounts["retain"] = read(general, "all", whole=True)
    for group in (stores, held):
        for store in group if len(group) > 1 else []:
            store.named = True
    weights = [source.weight for source in listed]
    mixed = several or weights != [1.0]
    sizes = [len(store) for store in stores]
    return Data(
        train=Mixture(stores) if several else stores[0],
        held_out=Mixture(held) if len(held) > 1 else held[0] if held else [],
        retain=retain,
        accounts=accounts,
        parts=tuple(zip(sizes, weights, strict=True)) if mixed else (),
        tokens_sha256=tokens_sha256([*stores, *held]),
    )


def _reading_of(data: DataSection, source: SourceSection, part: str, max_length: int) -> Reading:
    share = data.eval if isinstance(data.eval, float) and part != "all" else None
    return Reading(
        format=source.format if source.format != "auto" else data.format,
        max_length=max_length,
        train_on=data.train_on,
        too_long=data.too_long,
        columns=data.columns,
        thoughts=data.thoughts,
        split_turns=data.split_turns,
        split=source.split,
        held_out=share,
        part=part,
    )


def held_out_readings(data: DataSection, *, max_length: int) -> dict[str, tuple[str, Reading]]:
    """Where the held-out rows are, by the names of their accounts: (path, how they are read)."""
    is_share = isinstance(data.eval, float)
    listed = sources_of(data) if is_share else held_out_sources(data)
    part = "eval" if is_share else "all"
    return {
        f"eval[{number}]" if len(listed) > 1 else "eval": (
            source.path,
            _reading_of(data, source, part, max_length),
        )
        for number, source in enumerate(listed)
    }


def _require_fields(columns: dict[str, str]) -> None:
    for name in columns:
        if name not in rows.FIELDS:
            near = closest(name, rows.FIELDS)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(
                f"data.columns: {name} is not a loractl field, expected one of"
                f" {', '.join(sorted(rows.FIELDS))}{hint}"
            )
