"""Tokens that a tokenizer has and an embedding has no row for, and which tokens rows use.

They come from tokens added to a tokenizer whose model was not resized. Who holds a model decides
when to look: only if `count_ids` exceeds the rows of its embedding.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from loractl.data.store import Mixture, Store
from loractl.errors import DataError
from loractl.records import Example

IN_TRAINING = "list it in model.add_tokens, or use a base whose embedding has been resized"
IN_USE = "use an adapter trained with model.add_tokens, or a base whose embedding has been resized"


def count_ids(tokenizer: Any) -> int:
    """The rows that an embedding needs for every token: the highest id plus one."""
    needed: int = max([len(tokenizer), *(index + 1 for index in tokenizer.added_tokens_decoder)])
    return needed


def describe_beyond(tokenizer: Any, index: int, n_rows: int, cure: str) -> str:
    """What is wrong with a token that has no row, and what to do."""
    token = tokenizer.convert_ids_to_tokens(index)
    return (
        f"token {token!r} (id {index}) is beyond the {n_rows} rows of the model's embedding; {cure}"
    )


def require_rows(examples: Sequence[Example], tokenizer: Any, n_rows: int, *, cure: str) -> None:
    """Raise DataError naming the first row with a token beyond the embedding."""
    if count_ids(tokenizer) <= n_rows:
        return
    for store in _stores(examples):
        for start, ids in store.blocks():
            if (beyond := ids >= n_rows).any():
                at = int(beyond.argmax())
                number = int(np.searchsorted(store.lengths.cumsum(), start + at, side="right"))
                what = describe_beyond(tokenizer, int(ids[at]), n_rows, cure)
                raise DataError(f"{store.where(number)}: {what}")


def first_beyond(ids: Sequence[int], n_rows: int) -> int | None:
    """The first id of a prompt that has no row."""
    return next((index for index in ids if index >= n_rows), None)


def used_ids(examples: Sequence[Example], wanted: Collection[int]) -> set[int]:
    """Which of these ids occur in the examples."""
    asked = np.array(sorted(wanted), dtype=np.int32)
    found: set[int] = set()
    for store in _stores(examples):
        for _, ids in store.blocks():
            found.update(asked[np.isin(asked, ids)].tolist())
    return found


def _stores(examples: Sequence[Example]) -> list[Store]:
    if isinstance(examples, Mixture):
        return list(examples.stores)
    return [examples] if isinstance(examples, Store) else []
