"""Limits on a chat template, which is someone else's program: it runs sandboxed, and it ends.

transformers' sandbox bars files, imports and private attributes and limits `range` to 100,000
iterations, but nested loops may still take days.
"""

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes

from loractl.config.jinja_text import Generation
from loractl.errors import DataError


class _Expired(BaseException):
    """Time is up; not an Exception, so that no code inside catches it as one of its own."""


def _raise_expired(number: int, frame: FrameType | None) -> None:
    raise _Expired


@contextlib.contextmanager
def within_seconds(seconds: float, what: str) -> Iterator[None]:
    """Raise DataError if the body, Python code of the main thread, computes for longer.

    CPU time, not wall time: a busy machine does not make a template endless. The handler stays
    installed: setting it each time would take 16 microseconds instead of 6.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no alarms there
        return
    if signal.getsignal(signal.SIGVTALRM) is not _raise_expired:
        signal.signal(signal.SIGVTALRM, _raise_expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    except _Expired:
        raise DataError(f"{what} did not finish within {seconds:g} s and was stopped") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def check_powers(template: Any) -> None:
    """Raise DataError if a template uses a power: 9**9**9 is one long step in C, which no alarm
    can interrupt. No published template uses one.
    """
    texts = template.values() if isinstance(template, dict) else [template]
    for text in texts:
        if isinstance(text, str) and "**" in text:
            _check_powers(text)


@functools.lru_cache(maxsize=16)
def _check_powers(text: str) -> None:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", Generation])
    try:
        tree = environment.parse(text)
    except jinja2.TemplateSyntaxError:
        return  # reported when it is rendered
    if tree.find(nodes.Pow) is not None:
        raise DataError("the chat template uses a power (**), which is not allowed; remove it")
