"""The progress of a run on stderr: a bar that moves on a terminal, and lines that stay."""

import os
import sys
from types import TracebackType
from typing import IO, TYPE_CHECKING

from loractl import console
from loractl.text import duration

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

BAR = 24  # characters


class Progress:
    """A line that stays every `log_every` steps; on a terminal a bar below them, in color or plain.

    A context manager, so that the terminal is restored however the work ends.
    """

    def __init__(self, total: int, *, start: int = 0, log_every: int = 1) -> None:
        self.total = total
        self.start = start
        self.log_every = log_every
        self._live: RichProgress | _PlainBar | None = None

    def __enter__(self) -> "Progress":
        if console.is_silent():
            return self
        if console.is_rich(sys.stderr):
            self._live = _rich_bar()
            self._live.start()
            self._task = self._live.add_task("", total=self.total, completed=self.start)
        elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._live = _PlainBar(sys.stderr)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, step: int, text: str, *, seconds_left: float) -> None:
        """Report that `step` is done; `text` has loss, speed and memory on one line."""
        eta = duration(seconds_left)
        if isinstance(self._live, _PlainBar):
            self._live.draw(f"step {step}/{self.total} {_drawn(step, self.total)} eta {eta}")
        elif self._live is not None:
            self._live.update(self._task, completed=step)
        if step % self.log_every == 0 or step == self.total:
            self.say(f"step {step}/{self.total}  {text}  eta {eta}")

    def say(self, text: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        if isinstance(self._live, _PlainBar):
            self._live.clear()
            console.note(text)
            self._live.redraw()
        elif self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            console.note(text)


def _rich_bar() -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=BAR),
        TextColumn("eta"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,  # the last line that stays says what the bar did
    )


def _drawn(step: int, total: int) -> str:
    done = BAR * step // total
    return f"[{'#' * done}{'-' * (BAR - done)}]"


class _PlainBar:
    """One line that is written over, by a carriage return alone: without color or any other escape
    sequence, as NO_COLOR asks."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._shown = stream, ""

    def draw(self, text: str) -> None:
        """Show a text in place of the one before."""
        missing = len(self._shown) - len(text)
        self._write(f"\r{text}{' ' * missing}")
        self._shown = text

    def redraw(self) -> None:
        """Show the text again after `clear`."""
        if self._shown:
            self._write(self._shown)

    def clear(self) -> None:
        """Make room for a line that stays."""
        self._write(f"\r{' ' * len(self._shown)}\r" if self._shown else "")

    def stop(self) -> None:
        """Leave an empty line."""
        self.clear()
        self._shown = ""

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # closed, or full: as for any message
            pass
