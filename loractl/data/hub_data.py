"""Datasets of the datasets library -> rows: hub ids, and directories written by `save_to_disk`.

The only module that imports datasets. Code shipped with a dataset is never run: since version 4
the library has no way to do so.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from loractl.data.row_files import Row
from loractl.data.tables import without_nulls
from loractl.errors import DataError


def is_saved(directory: Path) -> bool:
    """Whether `save_to_disk` wrote this directory."""
    one = all((directory / name).is_file() for name in ("dataset_info.json", "state.json"))
    return one or (directory / "dataset_dict.json").is_file()


def read_saved(directory: Path, split: str | None) -> Iterator[Row]:
    """Yield the rows of a directory that `save_to_disk` wrote, numbered from 1. Raises DataError.

    Without `split`: the split train, or the only one there is.
    """
    import datasets  # type: ignore[import-untyped]

    with _errors_worded(directory, _what_failed):
        found = datasets.load_from_disk(str(directory))
    if isinstance(found, datasets.DatasetDict):
        names = list(found)
        wanted = split or (names[0] if len(names) == 1 else "train")
        if wanted not in found:
            raise DataError(
                f"{directory}: no split {wanted}, found {', '.join(names)}; set split to one"
            )
        found = found[wanted]
    elif split not in (None, "train"):
        raise DataError(f"{directory}: no split {split}, the dataset has no splits; remove split")
    with _errors_worded(directory, _what_failed):
        yield from _number_rows(found, str(directory))


def read_streamed(name: str, split: str | None) -> Iterator[Row]:
    """Yield the rows of a dataset on the hub, numbered from 1, as they arrive. Raises DataError.

    Data already in the cache of datasets is read from there, without a connection.
    """
    import datasets

    datasets.disable_progress_bars()
    identity, configuration = _split_name(name)
    with _errors_worded(name, partial(_way_out, name)):
        rows = datasets.load_dataset(
            identity, configuration, split=split or "train", streaming=True
        )
        yield from _number_rows(rows, name)


def revision(name: str) -> str:
    """The current commit of a dataset on the hub. Raises DataError."""
    import datasets

    identity, configuration = _split_name(name)
    with _errors_worded(name, partial(_way_out, name)):
        # A builder's hash is the commit; for a cached one, the commit it was made from.
        return str(datasets.load_dataset_builder(identity, configuration).hash)


def _split_name(name: str) -> tuple[str, str | None]:
    identity, _, configuration = name.partition(":")
    return identity, configuration or None


def _number_rows(found: Any, path: str) -> Iterator[Row]:
    for number, fields in enumerate(found, 1):
        yield Row(number, without_nulls(fields), path)


@contextmanager
def _errors_worded(name: str | Path, word: Callable[[Exception], str]) -> Iterator[None]:
    """Turn whatever goes wrong inside into a DataError.

    Caught this broadly here only: errors raised through datasets, its HTTP client, fsspec and
    pyarrow have no class in common, and none of them is about our own code.
    """
    try:
        yield
    except Exception as error:
        raise DataError(f"{name}: {word(error)}") from None


def _way_out(name: str, error: Exception) -> str:
    """What went wrong, recognized by the wording of datasets 5.2, and how to fix it."""
    identity, said = _split_name(name)[0], str(error)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    no_path = f"neither a path here (resolved to {os.path.abspath(name)})"
    if "gated" in said:
        page = f"https://huggingface.co/datasets/{identity}"
        return f"gated: accept its terms at {page}, then run hf auth login"
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        fix = "check the name, or run hf auth login if it is private"
        return f"{no_path} nor a hub dataset that you can read; {fix}"
    if listed := re.search(r"[Cc]onfig.*vailable[^\[:]*: \[(.*)\]", said, re.DOTALL):
        names = listed[1].replace("'", "")
        return f"its configurations are {names}; name one, as in {identity}:NAME"
    if "Bad split" in said or "Unknown split" in said:
        return f"{said.splitlines()[0]}; set split to one of them"
    if "scripts are no longer supported" in said:
        return "is built by a script of its own, which is never run; use a Parquet or JSON copy"
    if kinds & {"ConnectionError", "TimeoutException", "ConnectError"}:
        offline = " (HF_HUB_OFFLINE is set)" if _is_offline() else ""
        fetch = f"hf download --repo-type dataset {identity} --local-dir DIR"
        return (
            f"{no_path} nor in the cache, and the hub cannot be reached{offline}; check the name,"
            f" or run {fetch} on a machine that reaches it and use DIR"
        )
    return _what_failed(error)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _what_failed(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"cannot be read: {type(error).__name__}: {lines[0]}"
