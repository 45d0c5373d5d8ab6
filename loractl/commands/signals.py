"""SIGINT and SIGTERM during training: finish the step and save; a second SIGINT leaves at once."""

import signal
from types import FrameType, TracebackType
from typing import Any

from loractl import console
from loractl.errors import INTERRUPTED, TERMINATED


class StopRequest:
    """A context in which the first signal is remembered, as the exit code to leave with."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.exit_code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        console.note(
            "stopping after this step; Ctrl-C again leaves at once, with the last checkpoint"
        )
