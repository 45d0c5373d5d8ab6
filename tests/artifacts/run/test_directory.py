"""The directory of a run: what state it is in, and what is cleared from it."""

from pathlib import Path

import pytest

from loractl.artifacts.run.directory import RunDir, Status
from loractl.errors import ConfigError, StateError


def make(path: Path, *, finished: str | None = None) -> RunDir:
    run = RunDir(path)
    path.mkdir()
    run.config.write_text("seed: 0\n")
    run.metrics.write_text("")
    run.data.write_text("{}")
    (run.checkpoints / "step-000001").mkdir(parents=True)
    if finished:
        (path / finished).mkdir()
    return run


def test_a_directory_is_absent_unfinished_or_finished(tmp_path: Path) -> None:
    assert RunDir(tmp_path / "none").status() is Status.ABSENT
    (tmp_path / "empty").mkdir()
    assert RunDir(tmp_path / "empty").status() is Status.ABSENT
    assert make(tmp_path / "begun").status() is Status.UNFINISHED
    for final in ("adapter", "model"):
        assert make(tmp_path / f"with-{final}", finished=final).status() is Status.FINISHED


def test_a_file_on_the_way_or_a_directory_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "file" / "a" / "run"):
        with pytest.raises(ConfigError, match=f"{tmp_path / 'file'} is a file"):
            RunDir(path).status()
    with pytest.raises(ConfigError, match=r"not empty and does not hold a run \(no config.yaml\)"):
        RunDir(tmp_path).status()


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("status", Status)
def test_what_may_start_where(
    resume: bool, overwrite: bool, status: Status, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    if status is not Status.ABSENT:
        make(path, finished="adapter" if status is Status.FINISHED else None)
    allowed = status is not Status.ABSENT if resume else overwrite or status is Status.ABSENT
    if allowed:
        assert RunDir(path).require(resume=resume, overwrite=overwrite) is status
        return
    words = "no run to resume" if resume else f"holds an? {status.value} run"
    with pytest.raises(StateError, match=words):
        RunDir(path).require(resume=resume, overwrite=overwrite)


def test_clearing_takes_what_a_run_wrote_and_leaves_its_config_and_foreign_files(
    tmp_path: Path,
) -> None:
    run = make(tmp_path / "run", finished="adapter")
    (run.path / "notes.txt").write_text("mine")
    run.clear_()
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "notes.txt"}
    RunDir(tmp_path / "absent").clear_()


def test_a_run_that_is_cleared_is_a_run_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path / "run", finished="adapter")
    seen = []
    for name in ("rename", "unlink"):
        real = getattr(Path, name)

        def watched(self: Path, *rest: object, real: object = real, **more: object) -> object:
            seen.append(run.status())
            return real(self, *rest, **more)  # type: ignore[operator]

        monkeypatch.setattr(Path, name, watched)
    run.clear_()
    assert seen[0] is Status.FINISHED and set(seen[1:]) == {Status.UNFINISHED}


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    (run.path / ".adapter.tmp-12").mkdir()
    (run.path / ".adapter.tmp-12" / "half").write_text("x")
    (run.path / ".metrics.jsonl.tmp-12").write_text("x")
    (run.checkpoints / ".step-000002.tmp-3").mkdir()
    (run.checkpoints / ".step-000000.old-3").mkdir()
    others = [run.path / ".gitignore", run.path / "a.tmp-1", run.checkpoints / ".tmp-1x"]
    for path in others:
        path.write_text("x")
    before = {
        path for path in run.path.rglob("*") if "tmp-12" not in str(path) and "-3" not in path.name
    }
    run.sweep_()
    assert set(run.path.rglob("*")) == before and all(path.exists() for path in others)


def test_only_what_a_killed_start_leaves_counts_as_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    (run.path / ".config.yaml.tmp-12").write_text("x")
    assert run.status() is Status.ABSENT
