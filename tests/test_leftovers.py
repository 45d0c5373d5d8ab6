"""What is being made is known by its name, and goes once nobody makes it any more."""

import os
import time
from pathlib import Path

from loractl import leftovers

NO_PROCESS = 2**22 + 1  # above what Linux gives
DAY = 86400


def test_what_is_being_made_or_removed_is_a_leftover_and_nothing_else_is() -> None:
    final = Path("run") / "step-000001"
    for path in (leftovers.being_made(final), leftovers.being_removed(final)):
        assert path.parent == final.parent and leftovers.is_leftover(path)
    for name in ("step-000001", ".step-000001", "a.tmp-1", ".tmp-1", ".a.tmp-1x", ".a.new-1"):
        assert not leftovers.is_leftover(Path(name))


def test_only_what_dead_processes_left_of_the_same_name_is_swept(tmp_path: Path) -> None:
    final = tmp_path / "adapter"
    dead = [tmp_path / f".adapter.{word}-{NO_PROCESS}" for word in ("tmp", "old")]
    own = [leftovers.being_made(final)]  # of an earlier process with our number
    kept = [tmp_path / f".adapter.tmp-{os.getppid()}", tmp_path / f".other.tmp-{NO_PROCESS}", final]
    for path in (*dead, *own, *kept):
        path.mkdir()
    leftovers.sweep_name(final)
    assert set(tmp_path.iterdir()) == set(kept)
    leftovers.sweep_directory(tmp_path)
    assert set(tmp_path.iterdir()) == {final}
    leftovers.sweep_directory(tmp_path / "absent")


def test_what_a_kill_left_in_a_cache_goes_after_a_day(tmp_path: Path) -> None:
    old, young, made = tmp_path / f"{leftovers.MAKING}a", tmp_path / f"{leftovers.MAKING}b", "made"
    theirs = tmp_path / ".git"  # of somebody who put the cache among files of their own
    for path in (old, young, tmp_path / made, theirs):
        path.mkdir()
        (path / "part").write_text("x")
    for path in (old, tmp_path / made, theirs):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    with leftovers.making_in_cache(tmp_path) as working:
        assert set(tmp_path.iterdir()) == {young, tmp_path / made, theirs, working}
        (working / "part").write_text("x")
    assert set(tmp_path.iterdir()) == {young, tmp_path / made, theirs}
