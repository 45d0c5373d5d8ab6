"""`loractl train --resume` with a changed setting, data or base is refused; --extend."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.commands.conftest import Capture, Config
from tests.runs import timeless, train, tree


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.rank=8", "lora.rank: changed from 4 to 8"),
        ("train.learning_rate=0.02", "train.learning_rate: changed from 0.01 to 0.02"),
        ("train.batch_size=2", "train.batch_size: changed from 4 to 2"),
        ("seed=1", "seed: changed from 0 to 1"),
        ("train.steps=6", "train.steps: changed from 4 to 6 since the run started; add --extend"),
        ("train.steps=2", "train.steps: changed from 4 to 2 since the run started; resume with"),
    ],
)
def test_a_changed_setting_is_refused_with_its_old_and_new_value(
    override: str, words: str, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file()
    assert train(config) == 0
    before = tree(tmp_path / "run")
    capsys.readouterr()
    assert train(config, "--resume", "--set", override) == 3
    assert words in capsys.readouterr().err
    assert tree(tmp_path / "run") == before


def test_all_changed_settings_are_named(config_file: Config, capsys: Capture) -> None:
    config = config_file()
    assert train(config) == 0
    assert train(config, "--resume", "--set", "lora.rank=8", "--set", "seed=1") == 3
    err = capsys.readouterr().err
    assert all(
        w in err
        for w in (
            "lora.rank: changed from 4 to 8",
            "lora.alpha: changed from 8 to 16",
            "seed: changed from 0 to 1",
        )
    )


def test_changed_data_is_refused_even_under_its_old_name(
    config_file: Config, train_file: Path, tmp_path: Path, stop_after: Any, capsys: Capture
) -> None:
    config = config_file()
    stop_after(2)
    assert train(config) == 130
    before = tree(tmp_path / "run")
    train_file.write_bytes(train_file.read_bytes() + b"\n")
    assert train(config, "--resume") == 3
    assert "data.train: the content changed" in capsys.readouterr().err
    assert tree(tmp_path / "run") == before


def test_a_changed_chat_template_is_refused(
    base: Any, config_file: Config, tmp_path: Path, stop_after: Any, capsys: Capture
) -> None:
    model = shutil.copytree(base("llama"), tmp_path / "base")
    config = config_file(model=model)
    stop_after(2)
    assert train(config) == 130
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text("Hello. " + template)
    assert train(config, "--resume") == 3
    assert "tokens of the rows: the content changed" in capsys.readouterr().err
    (model / "chat_template.jinja").write_text("{# what it writes is the same #}" + template)
    assert train(config, "--resume") == 0


def test_a_changed_base_is_refused(
    base: Any, config_file: Config, tmp_path: Path, stop_after: Any, capsys: Capture
) -> None:
    model = shutil.copytree(base("llama"), tmp_path / "base")
    config = config_file(model=model)
    stop_after(2)
    assert train(config) == 130
    before = tree(tmp_path / "run")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] += 1e-3
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert train(config, "--resume") == 3
    assert "model.name_or_path: the content changed" in capsys.readouterr().err
    assert tree(tmp_path / "run") == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_may_be_extended(
    finished: bool, config_file: Config, tmp_path: Path, stop_after: Any
) -> None:
    config, run = config_file("train: {schedule: constant}"), tmp_path / "run"
    longer = ["--set", "train.steps=6"]
    assert train(config, *longer, "--out", str(tmp_path / "whole")) == 0
    if finished:
        assert train(config) == 0
    else:
        stop_after(3)
        assert train(config) == 130
    assert train(config, *longer, "--resume", "--extend") == 0
    assert timeless(run) == timeless(tmp_path / "whole")
    name = "adapter/adapter_model.safetensors"
    assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 6


def test_extending_neither_shortens_a_run_nor_changes_other_settings(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file()
    assert train(config) == 0
    before = tree(tmp_path / "run")
    assert train(config, "--resume", "--extend", "--set", "train.steps=3") == 3
    assert "train.steps: changed from 4 to 3" in capsys.readouterr().err
    both = ["--set", "train.steps=9", "--set", "seed=3"]
    assert train(config, "--resume", "--extend", *both) == 3
    assert "seed: changed from 0 to 3" in capsys.readouterr().err
    epochs = ["--set", "train.steps=null", "--set", "train.epochs=1"]  # of 1 step of 12 rows
    assert train(config, "--resume", "--extend", *epochs, "--set", "seed=0") == 3
    assert "4 steps are already done, more than the" in capsys.readouterr().err
    assert tree(tmp_path / "run") == before


def test_extend_without_resume_is_refused(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    assert train(config_file(), "--extend") == 2
    assert "--extend: " in (said := capsys.readouterr().err) and "add --resume" in said
    assert not (tmp_path / "run").exists()
