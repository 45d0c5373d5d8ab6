"""A path or the id of a hub dataset -> rows, each with its location.

Also decisions based on content: a source's fingerprint, and which rows are held out. Interpreting
a row is left to `rows`.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from loractl.data import hub_data, json_files, tables
from loractl.data.row_files import Row as Row
from loractl.data.row_files import missing_file
from loractl.digests import file_sha256
from loractl.errors import DataError
from loractl.paths import is_hub_data
from loractl.records import Conversation, Message

READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": json_files.read,
    ".ndjson": json_files.read,
    ".json": json_files.read,
    ".csv": tables.read_separated,
    ".tsv": tables.read_separated,
    ".parquet": tables.read_parquet,
}
"""By file extension; all but .parquet may be followed by .gz."""

_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.")
"""Shards written by datasets: the part before is the full name of the split, such as train_sft."""

PACKED = 3
"""How much longer text is than a file that compresses it."""

NOT_ROWS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""Files that describe a dataset and hold none of its rows."""

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in file names that identify a split, the same as on the hub."""


def read(source: str | Path, split: str | None = None) -> Iterator[Row]:
    """Yield the rows of a file, a directory or a dataset on the hub, one at a time.

    A directory is read as `save_to_disk` wrote it, or as the data files in it, or those in its
    `data/` if it has none itself, as in clones from the hub; if file names identify splits, only
    those of `split`. Blank lines are skipped; an unreadable row has an error and no fields.
    Without `split`: train, if there are splits. Raises DataError if a source cannot be read to the
    end, or has no rows.
    """
    empty = True
    for row in _read_rows(source, split):
        empty = False
        yield row
    if empty:
        raise DataError(f"{source}: found no rows, expected at least one")


def _read_rows(source: str | Path, split: str | None) -> Iterator[Row]:
    path = Path(source)
    if path.is_dir():
        if hub_data.is_saved(path):
            yield from hub_data.read_saved(path, split)
            return
        for file in _data_files(path, split):
            yield from READERS[_ending_of(file)](file)
    elif is_hub_data(str(source)):
        yield from hub_data.read_streamed(str(source), split)
    else:
        yield from _choose_reader(path, split)(path)


def _choose_reader(path: Path, split: str | None) -> Callable[[Path], Iterator[Row]]:
    if not exists(str(path)):
        raise missing_file(path)
    if _ending_of(path) not in READERS:
        found = path.suffix or "no file extension"
        raise DataError(f"{path}: found {found}, expected {', '.join(READERS)} or a directory")
    if split not in (None, "train"):
        raise DataError(f"{path}: no split {split}, a file has no splits; remove split")
    return READERS[_ending_of(path)]


def exists(source: str) -> bool:
    """Whether a source is an existing path. Reads nothing."""
    return os.path.exists(source)


def fingerprint(source: str | Path, split: str | None = None) -> str:
    """A hash of all the bytes that `read` would read; for a hub dataset, of its revision.

    For a single file it is the file's SHA-256. Raises DataError.
    """
    path = Path(source)
    if path.is_dir():
        whole = hub_data.is_saved(path)
        files = sorted(path.rglob("*")) if whole else _data_files(path, split)
        parts = [
            f"{file.relative_to(path).as_posix()} {file_hash(file)}"
            for file in files
            if file.is_file()
        ]
        parts += [f"split {split}"] if whole and split else []
    elif is_hub_data(str(source)):
        parts = [f"{source} {split or 'train'} {hub_data.revision(str(source))}"]
    else:
        _choose_reader(path, split)
        return file_hash(path)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def n_bytes(source: str | Path, split: str | None = None) -> int:
    """About how many bytes of text a source has; 0 for a dataset on the hub, which may be any."""
    path = Path(source)
    if not path.exists():
        return 0
    if not path.is_dir():
        files = [path]
    elif hub_data.is_saved(path):
        files = [file for file in path.rglob("*") if file.is_file()]
    else:
        files = _data_files(path, split)
    packed = (".gz", ".parquet")
    return sum(
        file.stat().st_size * (PACKED if file.name.lower().endswith(packed) else 1)
        for file in files
    )


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises DataError."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def held_out(conversation: Conversation, fraction: float) -> bool:
    """Whether a conversation belongs to the share held out from training.

    Its content alone decides, so duplicates stay together whatever else their rows hold and
    whatever their format, and a row keeps its part when others are added.
    """
    return place_of(conversation) < fraction


def place_of(conversation: Conversation) -> float:
    """Where a conversation's content puts it between 0 and 1: below a fraction, it is held out."""
    parts: list[Any] = [_content_of(message) for message in conversation.messages]
    text = json.dumps([parts, list(conversation.tools)], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _content_of(message: Message) -> list[Any]:
    # The id of a call differs between recordings of the same conversation.
    calls = [{k: v for k, v in call.items() if k != "id"} for call in message.tool_calls]
    return [message.role, message.content.replace("\r\n", "\n").strip(), calls]


def _ending_of(path: Path) -> str:
    """The extension of a file if it is in `READERS`, else ""."""
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    ending = os.path.splitext(plain)[1]
    return ending if ending in READERS and (plain == name or ending != ".parquet") else ""


def _data_files(directory: Path, split: str | None) -> list[Path]:
    """The files of a directory that `read` reads, sorted by name. Raises DataError."""
    try:
        folders = sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
        found = _data_files_here(directory) or (
            _data_files_here(directory / "data") if "data" in folders else []
        )
    except OSError as error:
        raise DataError(f"{directory}: cannot be read: {error.strerror}") from None
    if not found:
        inside = f"; it has the folders {', '.join(folders[:8])}: use one" if folders else ""
        raise DataError(f"{directory}: no data files in it ({', '.join(READERS)}){inside}")
    return _of_split(directory, found, split)


def _data_files_here(directory: Path) -> list[Path]:
    return sorted(
        entry
        for entry in directory.iterdir()
        if _ending_of(entry)
        and entry.is_file()
        and not entry.name.startswith((".", "_"))
        and entry.name not in NOT_ROWS
    )


def _of_split(directory: Path, files: list[Path], split: str | None) -> list[Path]:
    """The files of one split if file names identify splits, else all of them."""
    splits = {file: split_of(file.name) for file in files}
    named = sorted({name for name in splits.values() if name})
    wanted = _split_named([split or "train"]) or split
    if not named and wanted == "train":
        return files
    if wanted not in named:
        found = "its file names contain no split; remove split"
        if named:
            found = f"found files of {', '.join(named)}; set split to one of them"
        raise DataError(f"{directory}: no split {split or 'train'}, {found}")
    if unnamed := [file.name for file in files if not splits[file]]:
        what = f"unlike the other files, {', '.join(unnamed[:3])} names no split"
        raise DataError(f"{directory}: {what}; move it away, or list the files one by one")
    return [file for file in files if splits[file] == wanted]


def split_of(name: str) -> str | None:
    """The split in a file name, such as train-00000-of-00001.parquet or my_test.csv."""
    if shard := _SHARD.match(name):
        return _split_named([shard[1]]) or shard[1]
    return _split_named(re.split(r"[^a-z]+", name.lower()))


def _split_named(words: Collection[str]) -> str | None:
    return next((split for split, known in SPLITS.items() if set(known) & set(words)), None)
