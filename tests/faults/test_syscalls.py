"""A save that dies, or is refused, at each system call that writes; injected by strace."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.artifacts.run import checkpoint
from tests.faults.conftest import FULL, Process, Warm, Whole, finish

CALLS = (
    "mkdir", "write", "pwrite64", "ftruncate", "rename", "renameat", "fsync", "chmod", "unlink",
    "unlinkat", "rmdir", "openat", "flock",
)  # fmt: skip
REFUSED = ("mkdir", "write", "pwrite64", "rename", "renameat", "fsync", "openat")
STRACE = shutil.which("strace")
needs_strace = pytest.mark.skipif(
    STRACE is None and not FULL, reason="strace is not installed; .ci/run brings it"
)


@pytest.fixture(scope="module")
def cut(warm: Warm, whole: Callable[..., Whole], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed before its last checkpoint: a save, a rotation and the adapter are to come."""
    expected = whole()
    run = tmp_path_factory.mktemp("cut") / "run"
    keep = ("--set", "train.keep_checkpoints=3")
    assert warm.run("train", expected.config, "--out", run, *keep).code == 0
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints" / f"step-{expected.steps:06d}")
    assert len(list((run / "checkpoints").iterdir())) == 2
    return run


def traced(warm: Warm, whole: Whole, run: Path, call: str, *inject: str) -> Process:
    """Resume under strace, which does `inject` to a call of the run's; wait for the end."""
    process = warm.start("train", whole.config, "--out", run, "--resume", hold=True)
    options = [f"-e{option}" for option in (f"trace={call}", *inject)]
    record = process.log.with_suffix(".strace")
    tracer = subprocess.Popen(
        [STRACE or "strace", "-f", "-qq", f"-o{record}", *options, f"-p{process.pid}"],
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 20
    while f"TracerPid:\t{tracer.pid}" not in Path(f"/proc/{process.pid}/status").read_text():
        assert tracer.poll() is None and time.monotonic() < until, "strace could not attach"
        time.sleep(0.002)
    process.go()
    process.wait()
    tracer.wait()
    return process


def numbers(warm: Warm, whole: Whole, cut: Path, call: str, where: Path) -> list[int]:
    """Which of a call's occurrences to try: all, or two of them, the last one too.

    Of the calls that open a file only those in the run's directory: others read a base.
    """
    run = shutil.copytree(cut, where)
    process = traced(warm, whole, run, call)
    assert process.code == 0, process.said
    record = process.log.with_suffix(".strace").read_text().splitlines()
    lines = [line for line in record if f" {call}(" in line]
    found = [n for n, line in enumerate(lines, 1) if call != "openat" or str(run) in line]
    assert found, f"a save makes no call of {call}"
    return found if FULL else sorted({found[len(found) * 3 // 5], found[-1]})


@needs_strace
@pytest.mark.parametrize("call", CALLS if FULL else ("rename", "fsync", "write", "unlinkat"))
def test_a_save_killed_at_any_call_is_resumed_unaided(
    call: str, warm: Warm, whole: Callable[..., Whole], cut: Path, tmp_path: Path
) -> None:
    expected, killed = whole(), 0
    for number in numbers(warm, expected, cut, call, tmp_path / "counted"):
        run = shutil.copytree(cut, tmp_path / "run")
        inject = f"inject={call}:signal=KILL:when={number}"
        process = traced(warm, expected, run, call, inject)
        assert process.code in (0, -signal.SIGKILL), process.said
        killed += process.code != 0
        finish(warm, expected, run)
        shutil.rmtree(run)
    print(f"{call}: {killed} kills")


@needs_strace
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("call", REFUSED if FULL else ("fsync", "write"))
def test_a_save_that_the_disk_refuses_anywhere_ends_with_5_and_loses_nothing(
    call: str, error: str, warm: Warm, whole: Callable[..., Whole], cut: Path, tmp_path: Path
) -> None:
    expected, refused = whole(), 0
    for number in numbers(warm, expected, cut, call, tmp_path / "counted"):
        run = shutil.copytree(cut, tmp_path / "run")
        inject = f"inject={call}:error={error}:when={number}"
        process = traced(warm, expected, run, call, inject)
        assert process.code in (0, 2, 3, 5), f"{number}: {process.said}"
        assert "Traceback" not in process.said, f"{number}: {process.said}"
        refused += process.code == 5
        assert checkpoint.newest_valid(run / "checkpoints")[1] == []
        # One that could not be read for a moment did not count, and an older one stayed for it.
        finish(warm, expected, run, most=3 if call == "openat" else 2)
        shutil.rmtree(run)
    print(f"{call} {error}: {refused} refused")
