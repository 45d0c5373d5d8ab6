"""All printing: results to stdout, the rest to stderr; plain text unless it is a terminal."""

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import IO

from loractl.errors import MOST_SHOWN, DataError
from loractl.world import World

_is_silent = False
"""Whether another process prints for this one."""


def is_rich(stream: IO[str]) -> bool:
    """Whether to use color and live lines on this stream: a terminal, and NO_COLOR not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def shows_colour() -> bool:
    """Whether results may be colored."""
    return is_rich(sys.stdout)


def width() -> int | None:
    """Columns of the terminal that results go to; None if it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def result(text: str) -> None:
    """Print the result of a command to stdout."""
    if not _is_silent:
        print(text, flush=True)


def piece(text: str) -> None:
    """Print part of a result, without a newline."""
    if not _is_silent:
        print(text, end="", flush=True)


def is_interactive() -> bool:
    """Whether the input is typed at a terminal."""
    return sys.stdin.isatty()


def ask(prompt: str) -> str | None:
    """Read a line: at a terminal with a prompt and line editing, otherwise as it comes.

    None at the end of the input (Ctrl-D). Raises DataError for input that is not UTF-8.
    """
    try:
        if is_interactive():
            return _read_typed(prompt)
        line = sys.stdin.readline()
        line.encode()  # some locales pass invalid bytes through as surrogates
        return line.rstrip("\r\n") if line else None
    except UnicodeError as error:
        raise DataError(f"stdin: found bytes that are not UTF-8: {error}") from None


def _read_typed(prompt: str) -> str | None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() line editing and history
    if not sys.stdout.isatty():  # results go to a file; the prompt must not
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    try:
        return input(prompt)
    except EOFError:
        note("")  # the next output starts on its own line
        return None
    except KeyboardInterrupt:
        note("")
        raise


def speak_as(world: World) -> None:
    """Let the first of several processes print for all; the others print only errors."""
    global _is_silent
    _is_silent = not world.is_first


def is_silent() -> bool:
    """Whether another process prints for this one."""
    return _is_silent


def note(text: str) -> None:
    """Print a message to stderr. A closed stream or a full disk is ignored."""
    if not _is_silent:
        _print_to_stderr(text)


def _print_to_stderr(text: str) -> None:
    if sys.stderr.isatty():
        text = _between_words(text, shutil.get_terminal_size().columns)
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _between_words(text: str, columns: int) -> str:
    """A text whose long lines are broken between words: a terminal would break within them."""
    keep = {"replace_whitespace": False, "break_long_words": False, "break_on_hyphens": False}
    lines = []
    for line in text.split("\n"):
        is_short = len(line) <= columns
        lines += [line] if is_short else textwrap.wrap(line, columns, **keep)  # type: ignore[arg-type]
    return "\n".join(lines)


def leave_terminal() -> None:
    """Show the cursor again, for a process that exits without closing its live line."""
    if is_rich(sys.stderr):
        note("\x1b[?25h")


def errors(messages: Sequence[str]) -> None:
    """Print one block per error to stderr: the first ten, then a count."""
    head = "\x1b[31merror:\x1b[0m" if is_rich(sys.stderr) else "error:"
    for message in messages[:MOST_SHOWN]:
        _print_to_stderr(f"{head} {message}")
    if (more := len(messages) - MOST_SHOWN) > 0:
        _print_to_stderr(
            f"... and {more} more error{'s' if more > 1 else ''} ({len(messages)} in all)"
        )
