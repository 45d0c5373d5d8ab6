"""SIGINT and SIGTERM: finish the step and save, or leave at once if there is nothing to save.

Python runs signal handlers between bytecodes of the main thread, which a long backward pass can
delay by a minute. So a thread watches too: it acknowledges the first signal, and makes sure that a
second SIGINT ends the process soon, whatever the main thread is doing.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from loractl import console
from loractl.errors import INTERRUPTED, TERMINATED, Stopped

LEAVING_SECONDS = 1.0
"""How long the main thread may take to clean up after a second SIGINT."""


def leave(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM in a `loractl` process: clean up and exit, like Ctrl-C."""
    raise Stopped(TERMINATED)


def ignore() -> None:
    """Ignore signals from now on: the work is done and the process is about to exit."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """A context that records the first signal, as the exit code to leave with."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._at_once = False
        self._left = False
        self._before: dict[int, Any] = {}

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal raises Stopped, since there is nothing to save yet."""
        if self.exit_code is not None:
            raise Stopped(self.exit_code)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def __enter__(self) -> "StopRequest":
        self._ended = threading.Event()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._lost
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._before[signal.SIGTERM] is leave:
            ignore()  # everything is written and reported
        else:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        sys.unraisablehook = self._hook
        self._ended.set()
        os.close(self._write_end)
        self._watcher.join()
        os.close(self._read_end)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.exit_code = self.exit_code or (INTERRUPTED if number == signal.SIGINT else TERMINATED)
        if self._at_once:
            self._left = True
            raise Stopped(self.exit_code)

    def _lost(self, lost: Any) -> None:
        """Raise Stopped again a moment later if it was raised in a garbage collector callback.

        Exceptions do not propagate from there; Python would only print it.
        """
        if isinstance(lost.exc_value, Stopped):
            threading.Timer(0.02, self._again).start()
        else:
            self._hook(lost)

    def _again(self) -> None:
        if not self._ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # the exit code stays that of the first signal

    def _watch(self) -> None:
        """Read the number of each signal as it arrives, until the other end is closed."""
        seen = 0
        while numbers := os.read(self._read_end, 64):
            for number in numbers:
                if number not in (signal.SIGINT, signal.SIGTERM):
                    continue
                seen += 1
                if seen == 1 and not (self._at_once or self._left):
                    console.note(
                        "stopping after this step; press Ctrl-C again to leave at once with the"
                        " last checkpoint"
                    )
                elif seen > 1 and number == signal.SIGINT:
                    if self._ended.wait(LEAVING_SECONDS):
                        return
                    console.leave_terminal()
                    os._exit(INTERRUPTED)
