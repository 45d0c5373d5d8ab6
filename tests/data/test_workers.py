"""Several processes tokenize a source: the results of one, errors included, and an end to all of
them whatever happens."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from loractl.data import examples, reading, workers
from loractl.data.chat_templates import with_template
from loractl.data.reading import Reading
from loractl.data.store_cache import Cache
from loractl.data.stretch import Part
from loractl.errors import DataError, ProcessError
from tests.tiny import CHATML, chat_rows, write_jsonl

REFUSES = CHATML.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if m['content'] == 'no' %}{{ raise_exception('said no') }}"
    "{% endif %}",
)
Load = Callable[..., dict[str, bytes]]


class Waiting(workers._Crew):
    """Processes that have all begun before the first row is read."""

    answers = 0

    def __enter__(self) -> "Waiting":
        super().__enter__()
        while any(not one.is_ready for one in self.workers):
            self._listen()
        return self

    def _wait_for(self, slot: workers._Slot) -> Part:
        Waiting.answers += slot.outcome is None
        return super()._wait_for(slot)


@pytest.fixture
def load(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Load:
    """The files of the store that so many processes make of rows."""

    def load(path: Path, count: int, *, template: str = CHATML, **options: Any) -> dict[str, bytes]:
        monkeypatch.setattr(workers, "count_for", lambda *_: count)
        monkeypatch.setattr(workers, "_Crew", Waiting)
        monkeypatch.setattr(reading, "BATCH", 7)  # rows a stretch
        settings = {"max_length": 200, "train_on": "assistant", "too_long": "truncate"}
        asked = Reading(**{"format": "auto", **settings, **options})
        cache = Cache(tmp_path / f"cache-{count}")
        store, _ = examples.load(str(path), with_template(tokenizer, template), asked, cache=cache)
        (place,) = cache.root.iterdir()
        assert len(store) == len(store.lengths)
        return {file.name: file.read_bytes() for file in sorted(place.iterdir())}

    return load


def mixed_rows() -> list[dict[str, Any]]:
    """Rows of several forms: weights, answers that are empty, fields that nothing reads."""
    rows: list[dict[str, Any]] = chat_rows(80)
    for number in (9, 33, 34, 70):
        rows[number]["messages"][-1]["weight"] = number / 20
    rows[20]["messages"][-1]["content"] = ""
    rows[50]["messages"][0]["name"] = rows[60]["source"] = "Привет"
    rows[61]["messages"] = rows[61]["messages"][:1]
    rows[62]["messages"][-1]["content"] = "long " * 80
    return rows


def test_two_processes_write_the_bytes_of_one(tmp_path: Path, load: Load) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", mixed_rows())
    one, before = load(path, 1), Waiting.answers
    assert load(path, 2) == one and "weights" in one
    assert Waiting.answers > before, "the other processes did some of it"
    account = json.loads(one["account.json"])["account"]
    assert account["rows"] == 80 and 63 in account["truncated"]["first"]
    assert account["empty"]["first"] == [21] and account["untrained"]["first"] == [62]
    assert account["unread"] == {"messages[].name": 1, "source": 1}


def test_two_processes_report_the_bad_rows_of_one_in_the_order_of_the_file(
    tmp_path: Path, load: Load
) -> None:
    rows: list[Any] = chat_rows(60)
    for number in range(8, 60, 4):
        rows[number] = {"messages": [{"role": "user", "content": number}]}
        rows[number + 1]["messages"][-1]["content"] = "no"
    path = write_jsonl(tmp_path / "rows.jsonl", rows)

    def refusal(count: int) -> tuple[str, ...]:
        with pytest.raises(DataError) as caught:
            load(path, count, template=REFUSES)
        assert list((tmp_path / f"cache-{count}").iterdir()) == []
        return caught.value.messages

    found = refusal(1)
    assert found == refusal(2)
    assert [int(one.split(":")[1]) for one in found] == [9, 10, 13, 14, 17, 18, 21, 22, 25, 26]
    assert "said no" in found[1] and "16 more bad rows" in found[-1]


def test_a_file_that_breaks_off_is_refused_as_by_one_process(tmp_path: Path, load: Load) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(chat_rows(40))[:-20])
    told = set()
    for count in (1, 2):
        with pytest.raises(DataError, match="not valid JSON") as caught:
            load(path, count)
        told.add(str(caught.value))
    assert len(told) == 1


@pytest.mark.parametrize("start", ["raise SystemExit(3)", workers._START])
def test_rows_are_tokenized_here_where_no_process_can_begin_or_has_another_tokenizer(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", mixed_rows())
    monkeypatch.setattr(workers, "_START", start)
    if start == workers._START:
        monkeypatch.setattr("loractl.data.tokenizer_copy.digest", lambda _: "another")
    assert load(path, 1) == load(path, 2)


def test_a_process_that_is_killed_ends_the_command_with_its_reason(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", chat_rows(200))
    listen, seen = workers._Crew._listen, list[workers._Worker]()

    def kill_one(crew: workers._Crew, seconds: float | None = None) -> None:
        listen(crew, seconds)
        seen[:] = crew.workers
        if all(one.is_ready for one in crew.workers):
            crew.workers[0].process.kill()

    monkeypatch.setattr(workers._Crew, "_listen", kill_one)
    with pytest.raises(ProcessError, match="was ended by SIGKILL.*memory") as caught:
        load(path, 2)
    assert caught.value.exit_code == 5 and str(path) in str(caught.value)
    assert all(one.process.poll() is not None for one in seen)
    assert list((tmp_path / "cache-2").iterdir()) == []


ENDLESS = """
import itertools, os, signal, sys
from pathlib import Path
from loractl import signals
from loractl.data import examples, sources, tokenizer_copy, workers
from loractl.data.reading import Reading
from loractl.data.row_files import Row
from loractl.data.store_cache import Cache
from loractl.data.stretch import Part
from loractl.errors import Stopped
from loractl.models.light_tokenizer import load_light

base, rows, cache = sys.argv[1:]
fields = next(sources.read(rows)).fields
sources.read = lambda *_: (Row(n, fields, rows) for n in itertools.count(1))
workers.count_for = lambda *_: 2
listen = workers._Crew._listen
def told(crew, seconds=None):
    listen(crew, seconds)
    if not told.done and all(one.slots for one in crew.workers):
        print(*(one.process.pid for one in crew.workers), flush=True)
        told.done = True
told.done = False
workers._Crew._listen = told
signal.signal(signal.SIGTERM, signals.leave)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
try:
    examples.load(rows, load_light(Path(base)), Reading("auto", 64, "assistant", "drop"),
                  cache=Cache(Path(cache)))
except Stopped as stopped:
    sys.exit(stopped.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_all_processes_at_once(
    tmp_path: Path, base: Callable[..., Path], number: signal.Signals, code: int
) -> None:
    rows, cache = write_jsonl(tmp_path / "rows.jsonl", chat_rows(1)), tmp_path / "cache"
    command = [sys.executable, "-c", ENDLESS, str(base()), str(rows), str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as run:
        assert run.stdout is not None
        pids = [int(word) for word in run.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_running, pids))
        os.killpg(run.pid, number)  # as a terminal does
        try:
            assert run.wait(10) == code
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, pids))
    if number != signal.SIGKILL:
        assert list(cache.iterdir()) == []


def is_running(pid: int) -> bool:
    """A zombie has ended, though nobody has asked for its status yet."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_only_long_sources_and_several_cores_start_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    packed = tmp_path / "packed.jsonl.gz"
    short.write_bytes(b"{}")
    os.truncate(write_jsonl(long, [{}]), workers.FEWEST_BYTES)
    os.truncate(write_jsonl(packed, [{}]), workers.FEWEST_BYTES // 3 + 1)
    plain = Reading("auto", 8, "assistant", "drop")
    held_out = Reading("auto", 8, "assistant", "drop", held_out=0.1, part="eval")
    monkeypatch.setattr(workers, "usable_cores", lambda: 3)
    counts = [workers.count_for(str(one), plain) for one in (short, long, packed, "a/b")]
    assert counts == [1, 3, 3, 1]
    assert workers.count_for(str(tmp_path), plain) == 3
    assert workers.count_for(str(long), held_out) == 1
    monkeypatch.setattr(workers, "usable_cores", lambda: 64)
    assert workers.count_for(str(long), plain) == workers.MOST
    monkeypatch.setenv("LORACTL_PLAIN_START", "1")
    assert workers.count_for(str(long), plain) == 1


def test_the_cores_are_those_that_this_process_may_use() -> None:
    if hasattr(os, "sched_getaffinity"):
        assert workers.usable_cores() == len(os.sched_getaffinity(0))
