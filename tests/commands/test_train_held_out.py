"""`loractl train` with rows held out: when they are evaluated, and runs that stop early."""

import json
import shutil
from pathlib import Path

from tests.commands.conftest import Capture, Config
from tests.runs import rows_of, train, tree
from tests.tiny import chat_rows, write_jsonl


def test_held_out_rows_are_evaluated_at_start_in_between_and_at_the_end(
    config_file: Config, tmp_path: Path
) -> None:
    held_out = write_jsonl(tmp_path / "held.jsonl", chat_rows(15)[12:])
    config = config_file(f"data: {{eval: {held_out}}}", "train: {steps: 5, eval_every: 2}")
    assert train(config) == 0
    rows = rows_of(tmp_path / "run")
    assert [(row["step"], "eval_loss" in row) for row in rows] == [
        (0, True), (1, False), (2, False), (2, True), (3, False), (4, False), (4, True), (5, False),
        (5, True),
    ]  # fmt: skip
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert losses[-1] < losses[0]
    accounts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert accounts["eval"]["examples"] == 3


def test_a_fraction_is_held_out_of_the_training_rows(config_file: Config, tmp_path: Path) -> None:
    assert train(config_file("data: {eval: 0.3}", "train: {steps: 1}")) == 0
    accounts = json.loads((tmp_path / "run" / "data.json").read_text())
    counts = [accounts[name]["rows"] for name in ("train", "eval")]
    assert sum(counts) == 12 and min(counts) > 0
    assert [row["step"] for row in rows_of(tmp_path / "run") if "eval_loss" in row] == [0, 1]


def test_a_fraction_that_leaves_no_rows_is_refused(
    config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    assert train(config_file("data: {eval: 0.0001}")) == 2
    assert "a share of 0.0001 leaves no row" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def early(config_file: Config, tmp_path: Path, **more: object) -> Path:
    """A run that learns its 12 rows by heart while the loss on held-out text of another kind
    rises."""
    held_out = write_jsonl(tmp_path / "held.jsonl", [{"prompt": "東京", "completion": "Привет"}])
    data = f"data: {{eval: {held_out}}}"
    settings = {"steps": 40, "eval_every": 1, "early_stopping": 2, "learning_rate": 0.3, **more}
    return config_file(data, f"train: {json.dumps({**settings, 'save_every': 100})}")


def test_early_stopping_ends_a_run_that_gets_no_better(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    assert train(early(config_file, tmp_path)) == 0
    run = tmp_path / "run"
    losses = [row["eval_loss"] for row in rows_of(run) if "eval_loss" in row]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 40 and rows_of(run)[-1]["step"] == best + 2
    assert "stopped early" in capsys.readouterr().err
    before = tree(run)
    assert train(early(config_file, tmp_path), "--resume") == 0
    assert "already complete" in capsys.readouterr().err and tree(run) == before


def test_a_run_that_stopped_early_and_was_killed_before_its_adapter_trains_no_further(
    config_file: Config, tmp_path: Path
) -> None:
    config, run = early(config_file, tmp_path), tmp_path / "run"
    assert train(config) == 0
    before = tree(run)
    shutil.rmtree(run / "adapter")
    assert train(config, "--resume") == 0
    assert tree(run) == before
