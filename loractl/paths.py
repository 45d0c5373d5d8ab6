"""What a text that names a source of rows can mean: a file by its ending, or a data set of the hub;
and where what can be made again is kept, so that nobody else can write there.

Read before anything is loaded, so nothing is looked up here but the names of paths.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Files that rows are read from; all but .parquet may be followed by .gz."""

OTHER_ENDINGS = (".gz", ".txt", ".zip", ".arrow", ".yaml", ".py")
"""Endings of names that are no ids of the hub, though no rows are read from such files."""

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?::[\w.-]+)?", re.ASCII)
"""owner/name, or owner/name:configuration."""


def is_hub_data(name: str) -> bool:
    """Whether a source is the id of a data set on the hub, and no path here.

    What begins with a directory that is here is a path: a file that is missing in it is no id.
    """
    if _HUB.fullmatch(name) is None or ".." in name or "--" in name:
        return False
    if name.lower().endswith((*DATA_ENDINGS, *OTHER_ENDINGS)):
        return False
    return not Path(name).exists() and not Path(name).parent.is_dir()


def cache_home() -> Path:
    """$LORACTL_CACHE, or loractl in the user's cache directory."""
    own = os.environ.get("LORACTL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loractl"


def make_private_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, for this user alone, whatever the
    umask; one of ours that others may write to is closed to them.

    Raises OSError where it belongs to another user, or cannot be made.
    """
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
    with open_directory(path) as descriptor:
        found = os.fstat(descriptor)
        require_own(found, path)
        if is_open_to_others(found):
            os.fchmod(descriptor, 0o700)


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """A descriptor of a directory, which a link does not stand for. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def require_own(found: os.stat_result, path: Path) -> None:
    """Raise OSError unless this user, or root, owns what was found."""
    if found.st_uid not in (0, os.geteuid()):
        raise OSError(f"{path}: belongs to another user")


def is_open_to_others(found: os.stat_result) -> bool:
    """Whether its group or the world may write to what was found."""
    return bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
