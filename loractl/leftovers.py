"""The names of what is being made beside its place, and what becomes of it after a kill.

What users name is made as `.name.tmp-<pid>`, and goes as `.name.old-<pid>`: the process tells whose
it is. In a cache, which machines may share, it is a `.making-` directory, and age tells.
"""

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MAKING = ".making-"
UNFINISHED_DAYS = 1
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?:tmp|old)-(?P<pid>\d+)")


def being_made(final: Path) -> Path:
    """Where this process makes what will have this name."""
    return final.parent / f".{final.name}.tmp-{os.getpid()}"


def being_removed(path: Path) -> Path:
    """Where this process puts what is to lose its name at once."""
    return path.parent / f".{path.name}.old-{os.getpid()}"


def is_leftover(path: Path) -> bool:
    """Whether a name says: not published yet, or given up already."""
    return _LEFTOVER.fullmatch(path.name) is not None


def sweep_name(final: Path) -> None:
    """Remove what processes that are no more left of this name."""
    for path in final.parent.iterdir():
        match = _LEFTOVER.fullmatch(path.name)
        if match and match["name"] == final.name and not _is_running(int(match["pid"])):
            delete(path)


def sweep_directory(directory: Path) -> None:
    """Remove all that was left in a directory which no other process writes to."""
    if directory.is_dir():
        for path in [path for path in directory.iterdir() if is_leftover(path)]:
            delete(path)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid != os.getpid()  # our own are those of an earlier process with this number


def delete(path: Path) -> None:
    """Remove a file, a directory with all in it, or of a link the link alone."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


@contextlib.contextmanager
def making_in_cache(directory: Path) -> Iterator[Path]:
    """A new directory within one of a cache, which is removed with all that is still in it."""
    sweep_cache(directory)
    with tempfile.TemporaryDirectory(prefix=MAKING, dir=directory) as name:
        yield Path(name)


def sweep_cache(directory: Path) -> None:
    """Remove what killed processes began here: what has such a name and is a day old.

    Nothing else: a cache may be put where somebody's own files are, hidden ones too.
    """
    oldest = time.time() - UNFINISHED_DAYS * 86400
    for entry in directory.iterdir():
        with contextlib.suppress(OSError):  # another process was faster, or it is not ours
            if entry.name.startswith(MAKING) and entry.stat().st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True)
