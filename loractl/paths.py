"""How data sources are named (files by their ending, datasets by hub id), and the cache directory,
which is private to the user.

Used before anything is loaded, so only path names are looked up here.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Endings of data files; all except .parquet may be followed by .gz."""

OTHER_ENDINGS = (".gz", ".txt", ".zip", ".arrow", ".yaml", ".py")
"""Endings of names that are not hub ids, although such files hold no rows."""

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?::[\w.-]+)?", re.ASCII)
"""owner/name, or owner/name:configuration."""


def is_hub_data(name: str) -> bool:
    """Whether a source is the id of a dataset on the hub rather than a local path.

    A name under an existing directory is a path, even if the file is missing.
    """
    if _HUB.fullmatch(name) is None or ".." in name or "--" in name:
        return False
    if name.lower().endswith((*DATA_ENDINGS, *OTHER_ENDINGS)):
        return False
    return not Path(name).exists() and not Path(name).parent.is_dir()


def address(name: str) -> str:
    """A name that means the same in any working directory: an absolute path, or a hub id."""
    path = Path(name).expanduser()
    return os.path.abspath(path) if path.exists() else name


def cache_home() -> Path:
    """$LORACTL_CACHE, or `loractl` in the user's cache directory."""
    own = os.environ.get("LORACTL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loractl"


def make_private_directory(path: Path) -> None:
    """Create a directory and its missing parents, accessible only to this user whatever the umask;
    if it exists and others may write to it, take that permission away.

    Raises OSError if it belongs to another user or cannot be created.
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
    """A descriptor of a directory; a symbolic link is refused. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def require_own(found: os.stat_result, path: Path) -> None:
    """Raise OSError unless this user or root is the owner."""
    if found.st_uid not in (0, os.geteuid()):
        raise OSError(f"{path}: belongs to another user")


def is_open_to_others(found: os.stat_result) -> bool:
    """Whether its group or everybody may write to it."""
    return bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
