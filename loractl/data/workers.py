"""Tokenizes a source in several processes, if it is long enough for that to pay, with the results
of a single one: each process takes stretches of rows, and their parts are put in order here.

Processes are started anew and never forked, since torch's threads may be running. They have no
terminal and no files; whatever ends this process or the tokenizing ends them.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from loractl.data import frames, sources, tokenizer_copy, worker
from loractl.data.reading import Reading, in_stretches
from loractl.data.rendering import Tokenizer
from loractl.data.row_files import Row
from loractl.data.stretch import Part, Source, tokenise
from loractl.errors import ProcessError
from loractl.startup import libraries

FEWEST_BYTES = 16_000_000
"""A process takes two seconds to start on a busy core, in which one core tokenizes about 3 MB."""
MOST = 8
QUEUED = 2
"""Stretches that a process has at most: one that it tokenizes, and the next."""
AHEAD = 4
"""Stretches for each process that may be under way or wait for an earlier one: what memory holds.
"""
ALONE = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
         "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
"""The variables of a process that has one core for itself."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from loractl.data import worker; worker.main(int(sys.argv[2]))"
)


def parts(source: Source, tokenizer: Tokenizer) -> Generator[Part, None, None]:
    """What comes of each stretch of a source, in order; to be closed by whoever stops early.

    Raises DataError, and ProcessError if a process is killed.
    """
    stretches = in_stretches(sources.read(source.name, source.reading.split))
    count = count_for(source.name, source.reading)
    values = tokenizer_copy.values_of(tokenizer) if count > 1 else None
    if values is None:
        format = source.reading.format
        for rows in stretches:
            part, format = tokenise(rows, source, tokenizer, format)
            yield part
        return
    with _Crew(source, tokenizer, values, count) as crew:
        yield from crew.parts(stretches)


def count_for(name: str, reading: Reading) -> int:
    """How many processes tokenize a source; 1: this one alone."""
    expected = float(sources.n_bytes(name, reading.split))
    if reading.held_out is not None and reading.part == "eval":
        expected *= reading.held_out
    if expected < FEWEST_BYTES or libraries.is_plain():
        return 1
    return min(usable_cores(), MOST)


def usable_cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


class _Slot:
    """The place of a stretch in the order, and what came of it once that is known."""

    def __init__(self, outcome: Part | Exception | None = None) -> None:
        self.outcome = outcome


class _Worker:
    """One process. It says hello, is given its work, says that it is ready, and then answers."""

    def __init__(self) -> None:
        self.line, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(number)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **ALONE},
                pass_fds=[number],
                process_group=0,  # a terminal's Ctrl-C is for this process, which ends the others
            )
        self.is_ready = False
        self.slots: deque[_Slot] = deque()  # of the stretches that it has

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.line.close()


class _Crew:
    """Processes that tokenize the stretches of one source. Leaving the context ends them."""

    def __init__(
        self, source: Source, tokenizer: Tokenizer, values: dict[str, Any], count: int
    ) -> None:
        self.source, self.tokenizer, self.count = source, tokenizer, count
        self.format = source.reading.format
        self.work = {**asdict(source), "tokenizer": values}
        self.digest = tokenizer_copy.digest(values)
        self.workers: list[_Worker] = []
        self.lines = selectors.DefaultSelector()

    def __enter__(self) -> "_Crew":
        try:
            for _ in range(self.count):
                self.workers.append(_Worker())
                self.lines.register(self.workers[-1].line, selectors.EVENT_READ, self.workers[-1])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        for one in self.workers:
            one.process.kill()
        for one in self.workers:
            one.end()

    def parts(self, stretches: Iterator[list[Row]]) -> Iterator[Part]:
        """The parts of all stretches, in order. An error is raised in the place of its stretch."""
        slots: deque[_Slot] = deque()
        for rows in _until_error(stretches):
            slots.append(_Slot(rows) if isinstance(rows, Exception) else self._give(rows))
            while slots and (slots[0].outcome or len(slots) > AHEAD * self.count):
                yield self._wait_for(slots.popleft())
        while slots:
            yield self._wait_for(slots.popleft())

    def _give(self, rows: list[Row]) -> _Slot:
        """Give a stretch to the process with the fewest, or do it here: until one is ready and the
        format of the rows is known, and where rows cannot be sent."""
        self._listen(0)
        text = None
        if self.format != "auto" and any(one.is_ready for one in self.workers):
            text = frames.text_of_rows(rows, self.format)
        if text is None:
            return self._tokenise_here(rows)
        while (taker := self._least_busy()) is None:
            self._listen()
        taker.slots.append(slot := _Slot())
        self._send(taker, text)
        return slot

    def _least_busy(self) -> _Worker | None:
        ready = (one for one in self.workers if one.is_ready)
        taker = min(ready, key=lambda one: len(one.slots))
        return taker if len(taker.slots) < QUEUED else None

    def _tokenise_here(self, rows: Sequence[Row]) -> _Slot:
        try:
            part, self.format = tokenise(rows, self.source, self.tokenizer, self.format)
        except Exception as error:  # raised once it is the turn of these rows
            return _Slot(error)
        return _Slot(part)

    def _wait_for(self, slot: _Slot) -> Part:
        while slot.outcome is None:
            self._listen()
        if isinstance(slot.outcome, Exception):
            raise slot.outcome
        return slot.outcome

    def _listen(self, seconds: float | None = None) -> None:
        """Take in what the processes say, waiting for it if need be."""
        for key, _ in self.lines.select(seconds):
            one = key.data
            frame = frames.receive(one.line)
            if frame is None:
                self._refuse_end(one)
            elif one.slots:
                one.slots.popleft().outcome = worker.error_of(frame[0]) or frames.part_of(frame)
            elif frame[0] == worker.HELLO:
                self._send(one, frames.text_of(self.work))
            elif frame[0] == self.digest:
                one.is_ready = True
            else:
                self._drop(one)  # its tokenizer is not the same

    def _send(self, one: _Worker, text: bytes) -> None:
        try:
            frames.send(one.line, text)
        except OSError:
            self._refuse_end(one)

    def _drop(self, one: _Worker) -> None:
        """Go on without a process that could not begin."""
        self.lines.unregister(one.line)
        self.workers.remove(one)
        one.end()

    def _refuse_end(self, one: _Worker) -> None:
        """Raise ProcessError for a process that has ended, unless it never began."""
        status = one.process.wait()
        if status > 0 and not one.is_ready:
            self._drop(one)
            return
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        raise ProcessError(
            f"{self.source.name}: a process that tokenizes its rows was ended {how}, as the system"
            " does where memory runs out; free some, or run on one core, as with taskset -c 0"
        )


def _until_error(stretches: Iterator[list[Row]]) -> Iterator[list[Row] | Exception]:
    """The stretches and, if the source cannot be read to its end, the error."""
    try:
        yield from stretches
    except Exception as error:
        yield error
