"""One writer a run directory: an flock, which the kernel takes back however a process ends.

The file beside the run's own, `.lock`, names the holder for others; it is gone when a run ends, and
what a killed one leaves of it holds nobody up. No torch: a second starter is told at once.
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
    """Raise StateError, naming the holder, where another process writes. Changes nothing."""
    try:
        descriptor = os.open(directory / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # none that could be held; what else is wrong here is told when it is taken
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _held_error(directory, descriptor) from None
    finally:
        os.close(descriptor)


class RunLock:
    """A context that holds the lock of a run directory, made where it is not there yet.

    A run that is rejected before it `keep`s the directory leaves it as it was, or not there at
    all. Raises StateError where another process holds the lock.
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
        """Say that the run has begun: its directory stays."""
        self._kept = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # While the lock is still held: nobody can have it by this name when the name goes.
        with contextlib.suppress(OSError):
            if self._before and not self._kept:
                # Of a killed run, which is as it was
                _overwrite_with(self._descriptor, self._before)
            else:
                self.path.unlink()
        os.close(self._descriptor)
        if not self._kept:
            self._remove_made()

    def _take_lock(self) -> tuple[int, bytes]:
        """A descriptor with the lock, and what stood in the file before."""
        for patience in range(10, -1, -1):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_still(self.path, descriptor):
                    before = os.pread(descriptor, 4096, 0)
                    holder = {"pid": os.getpid(), "host": socket.gethostname()}
                    _overwrite_with(descriptor, json.dumps(holder).encode() + b"\n")
                    return descriptor, before
                # Else the holder before us removed the file as it left: there is a new one.
            except BlockingIOError:
                if not patience:
                    held = _held_error(self.directory, descriptor)
                    os.close(descriptor)
                    raise held from None
                time.sleep(0.02)  # it may be someone who only looks: `require_free`
            except OSError as error:
                os.close(descriptor)
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                raise StorageError(
                    f"{self.path}: this disk takes no locks ({error.strerror}); choose an --out on"
                    " another one"
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise StateError(f"{self.path}: is removed again and again; is another run starting here?")

    def _remove_made(self) -> None:
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # someone else may have put something there
                path.rmdir()


def _make_missing(directory: Path) -> list[Path]:
    """Make a directory and those above it; return the ones that were not there."""
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
            time.sleep(0.02)  # it has the lock and will write its name
    return StateError(
        f"{directory}: {who} is writing this run; wait for it, stop it, or choose another --out"
    )
