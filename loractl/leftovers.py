"""Names of temporary files and directories, and their removal after a kill.

Output is written as `.name.tmp-<pid>` next to its final path and removed as `.name.old-<pid>`; the
pid tells whether its owner still runs. In a cache, which several machines may share, temporary
files are in a `.making-` directory, and its age decides.
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
    """The temporary path at which this process writes `final`."""
    return final.parent / f".{final.name}.tmp-{os.getpid()}"


def being_removed(path: Path) -> Path:
    """The path to which this process renames something that it is about to remove."""
    return path.parent / f".{path.name}.old-{os.getpid()}"


def is_leftover(path: Path) -> bool:
    """Whether this is a temporary name: not published yet, or being removed."""
    return _LEFTOVER.fullmatch(path.name) is not None


def sweep_name(final: Path) -> None:
    """Remove leftovers of this name whose process no longer runs."""
    for path in final.parent.iterdir():
        match = _LEFTOVER.fullmatch(path.name)
        if match and match["name"] == final.name and not _is_running(int(match["pid"])):
            delete(path)


def sweep_directory(directory: Path) -> None:
    """Remove all leftovers in a directory that no other process writes to."""
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
    return pid != os.getpid()  # with our own pid, it is from an earlier process


def delete(path: Path) -> None:
    """Remove a file, a directory tree, or a symbolic link (but not its target)."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


@contextlib.contextmanager
def making_in_cache(directory: Path) -> Iterator[Path]:
    """A temporary directory inside a cache directory, removed with its contents on exit."""
    sweep_cache(directory)
    with tempfile.TemporaryDirectory(prefix=MAKING, dir=directory) as name:
        yield Path(name)


def sweep_cache(directory: Path) -> None:
    """Remove temporary directories of killed processes: those at least a day old.

    Nothing else is removed: a cache may be in a directory with other files, even hidden ones.
    """
    oldest = time.time() - UNFINISHED_DAYS * 86400
    for entry in directory.iterdir():
        with contextlib.suppress(OSError):  # another process was first, or it is not ours
            if entry.name.startswith(MAKING) and entry.stat().st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True)
