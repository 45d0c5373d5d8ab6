"""Two at once: a second starter on a live run, and a reader while a run rotates its checkpoints."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.run import checkpoint
from loractl.errors import ArtifactError
from tests.faults.conftest import Process, Warm, Whole, assert_same, finish


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def wait_for(path: Path, process: Process) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, process.said
        time.sleep(0.002)


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
def test_a_second_starter_is_told_who_is_there_and_does_not_wait_for_it(
    flags: list[str], warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    expected, run = whole(), tmp_path / "run"
    first = warm.start("train", expected.config, "--out", run)
    wait_for(run / ".lock", first)
    while b"pid" not in (run / ".lock").read_bytes():
        pass
    first.send(signal.SIGSTOP)  # it is slow, and keeps the lock
    try:
        before = tree(run)
        argv = ["train", str(expected.config), "--out", str(run), *flags]
        second = subprocess.run(
            [sys.executable, "-m", "loractl", *argv], capture_output=True, text=True, timeout=120
        )
        assert second.returncode == 3, "it ends while the first, which is stopped, cannot"
        assert f"process {first.pid} on {socket.gethostname()} is writing" in second.stderr
        assert tree(run) == before
    finally:
        first.send(signal.SIGCONT)
    assert first.wait() == 0, first.said
    assert_same(run, expected)


def test_the_lock_of_a_killed_run_needs_no_hand(
    warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    expected, run = whole(), tmp_path / "run"
    first = warm.start("train", expected.config, "--out", run)
    wait_for(run / "checkpoints", first)
    first.kill_after(0)
    assert (run / ".lock").exists()
    finish(warm, expected, run)


def test_a_reader_never_sees_half_a_checkpoint_of_a_run_that_rotates_them(
    warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    expected, run = whole(), tmp_path / "run"
    options = ("--set", "train.steps=60", "--set", "train.save_every=1")
    keep = ("--set", "train.keep_checkpoints=1")
    writer = warm.start("train", expected.config, "--out", run, *options, *keep)
    wait_for(run / "checkpoints" / "step-000001", writer)
    seen, gone = set(), 0
    while warm.ask(do="ended", pid=writer.pid) is None:
        found, wrong = checkpoint.newest_valid(run / "checkpoints")
        assert all("removed while it was being read" in line for line in wrong), wrong
        try:
            step = found.state["train"]["step"]
            adapter = adapters.read(found.directory)
        except ArtifactError as error:
            assert not found.directory.exists(), error
            gone += 1
            continue
        assert adapter.about["step"] == step and len(adapter.tensors) == 28
        seen.add(step)
    assert len(seen) > 5, f"{seen} seen, {gone} gone"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000060"]


@pytest.mark.slow
def test_two_runs_that_tokenise_the_same_rows_at_once_read_the_same_tokens(
    warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    expected = whole()
    shutil.rmtree(Path(os.environ["LORACTL_CACHE"]))
    both = [warm.start("train", expected.config, "--out", tmp_path / name) for name in "ab"]
    for process, name in zip(both, "ab", strict=True):
        assert process.wait() == 0, process.said
        assert_same(tmp_path / name, expected)
