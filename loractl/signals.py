"""SIGINT and SIGTERM: finish the step and save, or leave at once where there is nothing to save.

Python runs its handlers between two bytecodes of the main thread, which a backward pass of a minute
keeps waiting. So a thread watches too: it answers the first signal, and lets a second SIGINT end
the process soon, whatever the main thread does.
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
"""How long the main thread may take to leave tidily after a second SIGINT."""


def leave(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM in a process that is `loractl` alone: end as Ctrl-C does, tidying up."""
    raise Stopped(TERMINATED)


def ignore() -> None:
    """Let no signal stop this process any more: its work is done, and only its end is to come."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """A context in which the first signal is remembered, as the exit code to leave with."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._at_once = False
        self._left = False
        self._before: dict[int, Any] = {}

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, the first signal raises Stopped: nothing that is done here needs to be saved."""
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
            ignore()  # all is written and told
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
        """Raise Stopped again, a moment later, when it came up in a callback of the collector.

        No exception gets out of there; Python would only print it.
        """
        if isinstance(lost.exc_value, Stopped):
            threading.Timer(0.02, self._again).start()
        else:
            self._hook(lost)

    def _again(self) -> None:
        if not self._ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # the exit code is that of the first signal

    def _watch(self) -> None:
        """Read the number of each signal as it comes, until the other end is closed."""
        seen = 0
        while numbers := os.read(self._read_end, 64):
            for number in numbers:
                if number not in (signal.SIGINT, signal.SIGTERM):
                    continue
                seen += 1
                if seen == 1 and not (self._at_once or self._left):
                    console.note(
                        "stopping after this step; Ctrl-C again leaves at once, with the last"
                        " checkpoint"
                    )
                elif seen > 1 and number == signal.SIGINT:
                    if self._ended.wait(LEAVING_SECONDS):
                        return
                    console.leave_terminal()
                    os._exit(INTERRUPTED)
