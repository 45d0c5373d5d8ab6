"""metrics.jsonl: whole rows in, whole rows out, and cut back to a step."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loractl.artifacts.run import metrics

ROWS = [
    {"step": 0, "eval_loss": 0.1 + 0.2},
    {"step": 1, "loss": 1e-300},
    {"step": 1, "eval_loss": 2.0},
    {"step": 2, "loss": 3.5, "lr": 1e-4},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    for row in ROWS:
        metrics.append(path, row)
    return path


def test_rows_come_back_as_they_were(path: Path) -> None:
    assert metrics.read(path) == ROWS
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS
    assert metrics.read(path.with_name("absent")) == []


def test_every_row_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for number, row in enumerate(ROWS, 1):
        metrics.append(path, row)
        assert len(path.read_bytes().splitlines()) == number


@given(st.integers(0, 200))
def test_a_file_cut_anywhere_gives_its_whole_rows(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.jsonl"
        for row in ROWS:
            metrics.append(path, row)
        whole = path.read_bytes()
        path.write_bytes(whole[:cut])
        found = metrics.read(path)
        assert found == ROWS[: len(found)]
        assert len(found) >= whole[:cut].count(b"\n")
        metrics.keep_until(path, 99)
        metrics.append(path, {"step": 9})
        assert metrics.read(path) == [*found, {"step": 9}]


def test_rows_after_a_step_are_dropped_and_its_own_are_kept(path: Path) -> None:
    metrics.keep_until(path, 1)
    assert metrics.read(path) == ROWS[:3]
    assert not [p for p in path.parent.iterdir() if p != path]


def test_numbers_that_are_no_json_are_never_written(path: Path) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            metrics.append(path, {"step": 3, "loss": value})
    assert metrics.read(path) == ROWS
