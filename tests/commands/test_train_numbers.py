"""`loractl train` where numbers go wrong: it stops or skips, and saves only what is finite."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands.conftest import Capture, Config
from tests.runs import rows_of, train


def test_a_nan_in_a_base_weight_stops_before_the_first_update(
    base: Any, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    model = shutil.copytree(base("llama"), tmp_path / "base")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert train(config_file(model=model)) == 4
    assert "step 1: loss is nan, in the batch of rows " in capsys.readouterr().err
    assert not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_steps_that_are_not_finite_may_be_skipped_and_are_counted_until_their_limit(
    base: Any, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    model = shutil.copytree(base("llama"), tmp_path / "base")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    skip = "train: {on_non_finite: skip, non_finite_limit: 4, steps: 6, save_every: 1}"
    assert train(config_file(skip, model=model)) == 4
    err = capsys.readouterr().err
    assert "step 1: skipped, the weights are unchanged: loss is nan, in the batch of rows " in err
    assert "error: step 4: loss is nan" in err and "not finite in 4 steps in a row" in err
    run = tmp_path / "run"
    assert [(row["step"], row["loss"], row["skipped_steps"]) for row in rows_of(run)] == [
        (1, None, 1), (2, None, 2), (3, None, 3)
    ]  # fmt: skip
    assert all(row["skipped"].startswith("loss is nan, in ") for row in rows_of(run))
    for path in run.rglob("adapter_model.safetensors"):
        assert all(bool(torch.isfinite(value).all()) for value in load_file(path).values())
    assert train(config_file(skip, model=model), "--resume") == 4, "the count goes on"
    assert train(config_file(skip, "train: {steps: 3}", model=model), "--overwrite") == 4
    assert "none of the 3 steps had a finite loss" in capsys.readouterr().err
    assert not (run / "adapter").exists()
    assert train(config_file("train: {non_finite_limit: 4}")) == 2
    assert "applies only to on_non_finite: skip" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [1, 6])
def test_a_learning_rate_that_explodes_leaves_only_finite_checkpoints(
    steps: int, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    settings = f"train: {{steps: {steps}, save_every: 1, learning_rate: 1e30}}"
    code = train(config_file(settings))
    assert code == (0 if steps == 1 else 4)
    if code:
        assert "try a learning_rate below" in capsys.readouterr().err
        assert not (tmp_path / "run" / "adapter").exists()
    for row in rows_of(tmp_path / "run"):
        assert math.isfinite(row["loss"])
    for path in (tmp_path / "run").rglob("adapter_model.safetensors"):
        assert all(bool(torch.isfinite(value).all()) for value in load_file(path).values())


def test_a_learning_rate_beyond_what_float32_holds_is_refused(
    config_file: Config, capsys: Capture
) -> None:
    assert train(config_file("train: {learning_rate: 1.0e+38}")) == 2
    assert "train.learning_rate: " in capsys.readouterr().err


def test_weights_that_a_step_made_infinite_are_not_saved(
    config_file: Config, tmp_path: Path, base: Any, capsys: Capture
) -> None:
    """Weight decay of 1e30 at a rate of 1e30 multiplies a weight by -1e60, beyond float32, in one
    step."""
    settings = "train: {steps: 1, learning_rate: 1e30, weight_decay: 1e30}"
    assert train(config_file("method: full", settings)) == 4
    assert "is no longer finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "model").exists()


def test_a_half_precision_run_writes_metrics_that_any_json_reader_takes(
    config_file: Config, tmp_path: Path
) -> None:
    sections = (
        "model: {dtype: float16}",
        "train: {steps: 2, batch_size: 2}",
        "data: {packing: false}",
    )
    assert train(config_file(*sections)) == 0
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    state = json.loads(
        (tmp_path / "run" / "checkpoints" / "step-000002" / "state.json").read_text()
    )
    assert state["train"]["loss_scale"]["scale"] >= 1
