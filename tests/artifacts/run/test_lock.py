"""One writer a run directory; a killed one holds nobody up; a rejected one leaves no trace."""

import json
import os
import socket
from pathlib import Path

import pytest

from loractl.artifacts.run import lock
from loractl.artifacts.run.lock import RunLock
from loractl.errors import StateError


def test_a_second_one_is_refused_with_process_and_host_and_the_first_is_unharmed(
    tmp_path: Path,
) -> None:
    with RunLock(tmp_path / "run") as held:
        held.keep()
        before = (tmp_path / "run" / ".lock").read_bytes()
        words = f"process {os.getpid()} on {socket.gethostname()} is writing this run"
        with pytest.raises(StateError, match=words):
            lock.require_free(tmp_path / "run")
        with pytest.raises(StateError, match=words), RunLock(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / ".lock").read_bytes() == before
    lock.require_free(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_rejected_run_leaves_what_was_there_or_was_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rejected"), RunLock(tmp_path / "a" / "b" / "run"):
        raise ValueError("rejected")
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    stale = tmp_path / "run" / ".lock"
    stale.write_text('{"pid": 123456789, "host": "elsewhere"}\n')
    with RunLock(tmp_path / "run"):
        assert json.loads(stale.read_text())["pid"] == os.getpid()
    assert stale.read_text() == '{"pid": 123456789, "host": "elsewhere"}\n'


def test_what_a_killed_holder_left_is_no_obstacle_and_goes_with_the_next_run(
    tmp_path: Path,
) -> None:
    for content in (b"", b"\xff\xfe", b'{"pid": 123456789, "host": "elsewhere"}\n'):
        (tmp_path / ".lock").write_bytes(content)
        lock.require_free(tmp_path)
        with RunLock(tmp_path) as held:
            held.keep()
        assert not list(tmp_path.iterdir())


def test_a_holder_that_has_not_written_its_name_yet_is_another_process(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / ".lock").write_bytes(b"")
        with pytest.raises(StateError, match="another process is writing this run"):
            lock.require_free(tmp_path)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    lock.require_free(tmp_path / "absent")
    lock.require_free(tmp_path)
    assert not list(tmp_path.iterdir())
