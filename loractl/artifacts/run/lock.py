"""One writer per run directory: an flock, which the kernel releases however a process ends.

The file `.lock` in it names the holder for others; it is removed when a run ends, and one left by a
killed process blocks nobody. Imports no torch, so that a second start is refused at once.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from loractl.errors import StateError, StorageError

NAME = ".lock"


def require_free(directory: Path) -> None:
    """Raise StateError, naming the holder, if another process is writing. Changes nothing."""
    try:
        descriptor = os.open(directory / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # nothing to be held; any other fault is reported when the lock is taken
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _held_error(directory, descriptor) from None
    finally:
        os.close(descriptor)


class RunLock:
    """A context that holds the lock of a run directory, which is created if it is missing.

    A run that is rejected before it `keep`s the directory leaves it as it was, or removes it if it
    was created here. Raises StateError if another process holds the lock.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / NAME
        self._kept = False

    def __enter__(self) -> "RunLock":
        self._made = _make_missing(self.directory)
        try:
            self._descriptor, self._before = self._take_lock()
        except BaseException:
            self._remove_made()
            raise
        return self

    def keep(self) -> None:
        """Declare that the run has begun: its directory stays."""
        self._kept = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # While the lock is still held: nobody else can hold it by this name when the name goes.
        with contextlib.suppress(OSError):
            if self._before and not self._kept:
                # Left by a killed run, and restored
                _overwrite_with(self._descriptor, self._before)
            else:
                self.path.unlink()
        os.close(self._descriptor)
        if not self._kept:
            self._remove_made()

    def _take_lock(self) -> tuple[int, bytes]:
        """A descriptor with the lock, and the previous content of the file."""
        for patience in range(10, -1, -1):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_still(self.path, descriptor):
                    before = os.pread(descriptor, 4096, 0)
                    holder = {"pid": os.getpid(), "host": socket.gethostname()}
                    _overwrite_with(descriptor, json.dumps(holder).encode() + b"\n")
                    return descriptor, before
                # Else the previous holder removed the file as it left: there is a new one.
            except BlockingIOError:
                if not patience:
                    held = _held_error(self.directory, descriptor)
                    os.close(descriptor)
                    raise held from None
                time.sleep(0.02)  # it may only be someone looking: `require_free`
            except OSError as error:
                os.close(descriptor)
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                raise StorageError(
                    f"{self.path}: this disk does not support locks ({error.strerror}); choose an"
                    " --out on another one"
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise StateError(f"{self.path}: keeps being removed; is another run starting here?")

    def _remove_made(self) -> None:
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # someone else may have put something there
                path.rmdir()


def _make_missing(directory: Path) -> list[Path]:
    """Make a directory and its parents; return the ones that were missing."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _overwrite_with(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, os.pwrite(descriptor, content, 0))


def _held_error(directory: Path, descriptor: int) -> StateError:
    who = "another process"
    for _ in range(5):
        try:
            holder = json.loads(os.pread(descriptor, 4096, 0))
            who = f"process {holder['pid']} on {holder['host']}"
            break
        except (ValueError, KeyError, TypeError):
            time.sleep(0.02)  # it has the lock and is about to write its name
    return StateError(
        f"{directory}: {who} is writing this run; wait for it, stop it, or choose another --out"
    )
