"""`loractl plot`: the curves of runs are those of their metrics."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from loractl.reports.plot import averaged, draw_runs, points
from tests.commands.conftest import Capture, Config
from tests.runs import rows_of, train

STARTS = {"png": b"\x89PNG\r\n", "svg": b"<?xml"}


def made_run(path: Path, *rows: dict[str, Any]) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("model: {}\n")
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def steps(n: int, **more: Any) -> list[dict[str, Any]]:
    return [{"step": i + 1, "loss": 2.0 / (i + 1), "lr": 1e-4, "grad_norm": 1.0, **more}
            for i in range(n)]  # fmt: skip


@pytest.mark.parametrize("ending", STARTS)
def test_several_runs_are_drawn_in_one_picture(
    config_file: Config, tmp_path: Path, capsys: Capture, ending: str
) -> None:
    assert train(config_file("data: {eval: 0.3}", "train: {steps: 2}")) == 0
    other = made_run(tmp_path / "other", *steps(40))
    picture = tmp_path / f"curves.{ending}"
    capsys.readouterr()
    assert main(["plot", str(tmp_path / "run"), str(other), "--out", str(picture)]) == 0
    assert capsys.readouterr().out == f"{picture}\n"
    content = picture.read_bytes()
    assert content.startswith(STARTS[ending]) and len(content) > 10_000


def test_the_points_are_the_rows_that_have_a_value(config_file: Config, tmp_path: Path) -> None:
    assert train(config_file("data: {eval: 0.3}", "train: {steps: 2}")) == 0
    rows = rows_of(tmp_path / "run")
    assert points(rows, "loss") == ([1, 2], [r["loss"] for r in rows if "loss" in r])
    assert points(rows, "eval_loss") == ([0, 2], [r["eval_loss"] for r in rows if "eval_loss" in r])
    skipped = [*steps(1), {"step": 2, "loss": None, "lr": 1e-4, "grad_norm": None}]
    assert points(skipped, "loss") == ([1], [2.0]) and points(skipped, "lr")[0] == [1, 2]


def test_a_legend_names_each_run_and_general_text(tmp_path: Path) -> None:
    rows = [*steps(3), {"step": 3, "eval_loss": 1.0, "retain_loss": 3.0}]
    picture = tmp_path / "curves.svg"
    draw_runs(picture, {"first": rows, "second": steps(30)})
    # Glyphs are paths in the picture; each text stands before them as a comment.
    text = picture.read_text()
    for word in ("first", "second", "first, general text (data.retain)", "held-out loss"):
        assert f"<!-- {word} -->" in text, word


def test_the_average_has_no_bias_toward_the_first_value() -> None:
    assert averaged([3.0] * 50) == pytest.approx([3.0] * 50)
    falling = averaged([float(-i) for i in range(100)])
    assert falling[0] == 0 and falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(-97.5, abs=1.0)


@pytest.mark.parametrize(
    ("make", "out", "said"),
    [
        (False, "a.png", "not a run directory"),
        (True, "a.png", "no steps yet"),
        (True, "a.pdf", "expected a name that ends in .png or .svg"),
        (True, "none/a.png", "not in an existing directory"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    tmp_path: Path, capsys: Capture, make: bool, out: str, said: str
) -> None:
    run = made_run(tmp_path / "run") if make else tmp_path / "run"
    assert main(["plot", str(run), "--out", str(tmp_path / out)]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / out).exists()


def test_runs_of_the_same_name_are_told_apart_and_torch_stays_out(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name / "run", *steps(2)) for name in ("a", "b")]
    code = (
        "import sys; from loractl.cli.main import main; code = main(sys.argv[1:]);"
        " assert 'torch' not in sys.modules; sys.exit(code)"
    )
    picture = tmp_path / "curves.svg"
    done = subprocess.run(
        [sys.executable, "-c", code, "plot", *map(str, runs), "--out", str(picture)]
    )
    assert done.returncode == 0
    assert all(f"<!-- {run} -->" in picture.read_text() for run in runs)
