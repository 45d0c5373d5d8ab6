"""Every error that a user can fix, and the exit code for it.

LoractlError      1   (never raised itself: a subclass says what went wrong)
├─ ConfigError    2   the YAML file, a flag, conflicting settings, or settings that need more memory
├─ DataError      2   rows that cannot be trained on
├─ ModelError     2   a base model that cannot be read or used
├─ ArtifactError  2   adapter, checkpoint or output files
├─ StateError     3   the run's state forbids it: locked, nothing to resume, changed config
├─ NumericError   4   a number went wrong: non-finite loss, a proof that failed
├─ StorageError   5   disk full, not writable
└─ ProcessError   5   a process that worked for the command was killed
"""

import errno

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
TERMINATED = 143  # 128 + SIGTERM
MOST_SHOWN = 10
_OF_THE_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM
}  # fmt: skip


class LoractlError(Exception):
    """An error with one or more messages, each printed as its own block."""

    exit_code = 1

    def __init__(self, *messages: str) -> None:
        super().__init__(*messages)
        self.messages = messages

    def __str__(self) -> str:
        return "\n".join(self.messages)


class ConfigError(LoractlError):
    exit_code = 2


class DataError(LoractlError):
    exit_code = 2


class ModelError(LoractlError):
    exit_code = 2


class ArtifactError(LoractlError):
    exit_code = 2


class StateError(LoractlError):
    exit_code = 3


class NumericError(LoractlError):
    exit_code = 4


class StorageError(LoractlError):
    exit_code = 5


class ProcessError(LoractlError):
    exit_code = 5


class Stopped(BaseException):
    """A signal stopped the command; carries the exit code.

    Like KeyboardInterrupt it is not an Exception: raised while a library loads files, it must not
    be taken for an error in those files.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy or torch ran out of memory; on a CPU torch has no class for it."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "out of memory" in text
    )


def is_of_the_disk(error: OSError) -> bool:
    """Whether a disk is full, broken or not writable, as reported by a StorageError."""
    return error.errno in _OF_THE_DISK
