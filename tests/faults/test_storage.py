"""Disks that are full, small or read-only: exit 5, bytes needed and free, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import loractl
from loractl.artifacts.run import checkpoint
from tests.faults.conftest import Warm, Whole, assert_same, finish

MAY_MOUNT = shutil.which("unshare") is not None and (
    subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode == 0
)
needs_mounts = pytest.mark.skipif(
    not MAY_MOUNT, reason="unshare -Urm is not allowed here, so no small disk can be made"
)
SMALL = """
set -e
mount -t tmpfs -o size={size} tmpfs {small}
mount -t tmpfs -o size=1m tmpfs {read_only}
mount -o remount,ro {read_only}
exec "$@"
"""


@pytest.fixture(scope="module")
def disks(
    tmp_path_factory: pytest.TempPathFactory, base: Callable[..., Path]
) -> Iterator[tuple[Warm, Path, Path]]:
    """(warm, a disk of 320 KiB, a read-only one): of a namespace that only its processes see."""
    directory = tmp_path_factory.mktemp("disks")
    small, read_only = directory / "small", directory / "read-only"
    small.mkdir()
    read_only.mkdir()
    server = subprocess.Popen(
        ["unshare", "-Urm", "bash", "-c",
         SMALL.format(size="320k", small=small, read_only=read_only), "bash", sys.executable,
         str(Path(__file__).with_name("warm.py")), str(base("llama"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(loractl.__file__).parent.parent)},
    )  # fmt: skip
    assert server.stdin and server.stdout
    assert json.loads(server.stdout.readline()) == "ready"
    seen = Path(f"/proc/{server.pid}/root")
    yield (
        Warm(tmp_path_factory.mktemp("said"), server),
        seen / small.relative_to("/"),
        seen / read_only.relative_to("/"),
    )
    server.stdin.close()
    server.stdout.close()
    server.wait()


def inside(path: Path) -> Path:
    """A path as the processes in the namespace see it."""
    return Path("/", *path.parts[4:])


@needs_mounts
def test_a_disk_that_fills_up_ends_the_run_with_5_and_the_run_goes_on_when_there_is_room(
    disks: tuple[Warm, Path, Path], whole: Callable[..., Whole], warm: Warm
) -> None:
    small_warm, small, _ = disks
    expected, run = whole(), small / "run"
    ballast = small / "ballast"
    for size in (60, 120, 180, 240):  # KiB: the save of another step does not fit
        ballast.write_bytes(b"x" * (size << 10))
        process = small_warm.run("train", expected.config, "--out", inside(run))
        assert process.code == 5, f"{size}: {process.said}"
        error = process.said.splitlines()[-1]
        assert "No space left" in error and "needed" in error and "free" in error, error
        assert str(inside(run)) in error
        if (run / "checkpoints").exists() and checkpoint.published(run / "checkpoints"):
            assert checkpoint.newest_valid(run / "checkpoints")[1] == []
        assert not [path for path in run.rglob("*") if ".tmp-" in path.name]
        ballast.unlink()
        shutil.rmtree(run, ignore_errors=True)
    ballast.write_bytes(b"x" * (60 << 10))
    assert small_warm.run("train", expected.config, "--out", inside(run)).code == 5
    assert checkpoint.published(run / "checkpoints"), "no checkpoint fitted: not what is tested"
    ballast.unlink()
    done = small_warm.run(
        "train", expected.config, "--out", inside(run), "--resume", "--set",
        "train.keep_checkpoints=1",
    )  # fmt: skip
    assert done.code == 0, done.said
    assert_same(run, expected)
    shutil.rmtree(run)


@needs_mounts
def test_a_merge_that_does_not_fit_leaves_nothing(
    disks: tuple[Warm, Path, Path], whole: Callable[..., Whole]
) -> None:
    small_warm, small, _ = disks
    for free in (10, 150, 280):
        (small / "ballast").write_bytes(b"x" * ((320 - free) << 10))
        out = inside(small / "merged")
        process = small_warm.run("merge", whole().run, "--out", out)
        (small / "ballast").unlink()
        assert (process.code == 5) == (free < 200), process.said
        if process.code:
            assert "No space left" in process.said and "needed" in process.said
            assert not list(small.iterdir())


@needs_mounts
def test_a_read_only_disk_is_told_before_the_model_is_loaded(
    disks: tuple[Warm, Path, Path], whole: Callable[..., Whole]
) -> None:
    small_warm, _, read_only = disks
    for place in (read_only / "run", read_only / "deep" / "run"):
        process = small_warm.run("train", whole().config, "--out", inside(place))
        assert process.code == 5 and "not writable" in process.said, process.said
        assert "model " not in process.said


def test_a_limit_on_the_size_of_files_is_a_disk_that_refuses_them(
    warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    """As a quota does; needs no right to mount, so it is tried everywhere."""
    expected, run = whole(), tmp_path / "run"
    largest = max(path.stat().st_size for path in expected.run.rglob("*") if path.is_file())
    for limit in (8 << 10, largest // 2, largest - 1):
        process = warm.run("train", expected.config, "--out", run, FSIZE=limit)
        assert process.code == 5, process.said
        assert "File too large" in process.said and "Traceback" not in process.said
        assert not [path for path in run.rglob("*") if ".tmp-" in path.name]
        flags = ["--resume"] if (run / "config.yaml").exists() else []
        assert warm.run("train", expected.config, "--out", run, *flags).code == 0
        finish(warm, expected, run)
        shutil.rmtree(run)
