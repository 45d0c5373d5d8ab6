"""The process that tokenizes rows for another one: what it is given is in frames, and so is what it
returns. Imports no torch.

    python -c "...; worker.main(SOCKET)"
"""

import os
import signal
import threading
import traceback
from collections.abc import Iterator
from queue import Queue
from socket import socket
from typing import Any

from loractl import errors
from loractl.data import frames, stretch, tokenizer_copy
from loractl.data.reading import Reading
from loractl.data.rendering import Tokenizer
from loractl.errors import LoractlError

HELLO = "hello"


def main(descriptor: int) -> None:
    """Serve until the other end is closed. The other process decides when to stop, so signals that
    reach all processes of a terminal or a service are for it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    line = socket(fileno=descriptor)
    frames.send(line, frames.text_of(HELLO))
    given = _received(line)
    value = next(given)
    source = stretch.Source(value["name"], Reading(**value["reading"]), value["several"])
    tokenizer = tokenizer_copy.made_of(value["tokenizer"])
    digest = tokenizer_copy.digest(tokenizer_copy.values_of(tokenizer))
    frames.send(line, frames.text_of(digest))
    for format, rows in given:
        value, data = _answer(format, rows, source, tokenizer)
        frames.send(line, frames.text_of(value), data)


def _received(line: socket) -> Iterator[Any]:
    """What the other process sends. A thread reads it, so that sending never waits for the rows
    before; and it ends this process at once when the other one is gone."""
    found: Queue[Any] = Queue()

    def read() -> None:
        while (frame := frames.receive(line)) is not None:
            found.put(frame[0])
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield found.get()


def _answer(format: str, rows: Any, source: stretch.Source, tokenizer: Tokenizer) -> frames.Frame:
    try:
        part, _ = stretch.tokenise(frames.rows_of(rows), source, tokenizer, format)
    except LoractlError as error:
        return {"error": type(error).__name__, "messages": error.messages}, b""
    except MemoryError:
        return {"error": "MemoryError", "messages": []}, b""
    except Exception:  # a bug, which the other process reports with this trace
        return {"error": "", "messages": [traceback.format_exc()]}, b""
    return frames.of_part(part)


def error_of(value: Any) -> Exception | None:
    """The error that an answer tells of."""
    if "error" not in value:
        return None
    if value["error"] == "MemoryError":
        return MemoryError()
    kind = getattr(errors, value["error"], None) if value["error"] else None
    if isinstance(kind, type) and issubclass(kind, LoractlError):
        return kind(*value["messages"])
    return RuntimeError(f"in a process that tokenizes rows:\n{value['messages'][0]}")
