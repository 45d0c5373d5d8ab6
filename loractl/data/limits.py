"""Limits on a chat template, a program of others: it runs in transformers' sandbox, and it ends.

The sandbox keeps a template from files, imports and private attributes, and `range` from more than
100,000 turns, but loops in loops may take days.
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
from jinja2.ext import Extension
from jinja2.parser import Parser

from loractl.errors import DataError


class _Expired(BaseException):
    """The time is over; no Exception, so that nothing within takes it for one of its own."""


def _raise_expired(number: int, frame: FrameType | None) -> None:
    raise _Expired


@contextlib.contextmanager
def within_seconds(seconds: float, what: str) -> Iterator[None]:
    """Raise DataError when the body computes for longer; it is Python code of the main thread.

    Time of the processor, not of the clock: a busy machine makes no template endless. The handler
    stays where it is: to set it each time would take 16 microseconds in place of 6.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no alarm can be had there
        return
    if signal.getsignal(signal.SIGVTALRM) is not _raise_expired:
        signal.signal(signal.SIGVTALRM, _raise_expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    except _Expired:
        raise DataError(f"{what} did not end within {seconds:g} seconds, and was stopped") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def check_powers(template: Any) -> None:
    """Raise DataError where a template takes a power: 9**9**9 is one long step of C, which no
    alarm ends. No template that anyone publishes takes one.
    """
    texts = template.values() if isinstance(template, dict) else [template]
    for text in texts:
        if isinstance(text, str) and "**" in text:
            _check_powers(text)


@functools.lru_cache(maxsize=16)
def _check_powers(text: str) -> None:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        tree = environment.parse(text)
    except jinja2.TemplateSyntaxError:
        return  # told when it is rendered
    if tree.find(nodes.Pow) is not None:
        raise DataError("the chat template takes a power (**), which is not allowed: remove it")


class _Generation(Extension):
    """The block that transformers adds to jinja, as far as it takes to read what is within."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.If(nodes.Const(True), body, [], [], lineno=line)
