"""Every optimizer trains and resumes bit for bit, or is refused where it cannot."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loractl.artifacts.run import checkpoint
from loractl.cli.main import main
from loractl.config import loader, optimizers
from loractl.config.optimizers import OPTIMIZERS
from loractl.engine.capacity import BESIDE
from loractl.engine.optimizer import require_optimizer
from loractl.errors import ConfigError
from tests.commands.conftest import HARD, assert_refused, assert_same_run
from tests.runs import rows_of, train
from tests.sweeps import sampled

Config = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
Stop = Callable[..., None]
WIDE = "lora: {rank: 128}"
"""Of the tiny model's A and B, some have 4,096 values and more: 8-bit state, and some have not."""
RATES = {"adamw": 1e-2, "adamw-8bit": 1e-2, "adamw-paged": 1e-2, "adafactor": 1e-2, "lion": 2e-3,
         "sgd": 1.0}  # fmt: skip


def with_optimizer(name: str) -> str:
    return f"train: {{optimizer: {name}, learning_rate: {RATES[name]}}}"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loss_falls_with_every_optimizer(name: str, config_file: Config) -> None:
    config = config_file(WIDE, "train: {steps: 8}", with_optimizer(name))
    assert train(config) == 0
    losses = [row["loss"] for row in rows_of(config.parent / "run")]
    assert losses[-1] < 0.9 * losses[0], (name, losses)


@pytest.mark.parametrize("name", sampled(OPTIMIZERS, "adamw-8bit", "adafactor", "lion"))
@pytest.mark.parametrize("method", sampled(["lora", "dora"], "lora"))
def test_a_stopped_run_goes_on_bit_for_bit(
    name: str, method: str, config_file: Config, stop_after: Stop, tmp_path: Path
) -> None:
    sections = (*HARD, WIDE, f"method: {method}", "train: {weight_decay: 0.1, lora_plus_ratio: 4}")
    config = config_file(*sections, with_optimizer(name))
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(config, "--out", str(whole)) == 0
    stop_after(3)
    assert train(config, "--out", str(run)) == 130
    stop_after(5)
    assert train(config, "--out", str(run), "--resume") == 130
    stop_after(0)
    assert train(config, "--out", str(run), "--resume") == 0
    assert_same_run(run, whole)


def test_a_resumed_run_of_all_weights_in_eight_bits_is_that_of_one_go(
    config_file: Config, stop_after: Stop, tmp_path: Path
) -> None:
    config = config_file("method: full", "train: {optimizer: adamw-8bit, learning_rate: 1e-3}")
    config.write_text(config.read_text().replace("lora:", "").replace("  rank: 4\n", "").replace(
        "  target_modules: all-linear\n", ""))  # fmt: skip
    assert train(config, "--out", str(tmp_path / "whole")) == 0
    stop_after(2)
    assert train(config, "--out", str(tmp_path / "run")) == 130
    stop_after(0)
    assert train(config, "--out", str(tmp_path / "run"), "--resume") == 0
    newest = "checkpoints/step-000004"
    for name in (f"{newest}/model.safetensors", f"{newest}/optimizer.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    state = load_file(tmp_path / "run" / newest / "optimizer.safetensors")
    embedding = next(key for key in state if key.startswith("state1.") and "embed" in key)
    assert state[embedding].dtype == torch.uint8


def test_another_optimizer_does_not_go_on_with_a_run(config_file: Config, capsys: Capture) -> None:
    config = config_file("train: {steps: 2}")
    assert train(config) == 0
    assert train(config, "--resume", "--extend", "--set", "train.optimizer=lion") == 3
    assert_refused(capsys, "train.optimizer: changed from adamw to lion since the run started")


def test_a_missing_package_is_told_before_anything_is_loaded(
    config_file: Config, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file("train: {optimizer: adamw-8bit}")
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    for command in ("train", "check"):
        assert main([command, str(config)]) == 2
        assert_refused(
            capsys, f"{config}:", "train.optimizer: adamw-8bit needs bitsandbytes",
            "pip install 'loractl[quant]'",
        )  # fmt: skip
    loader.load(config, paths_exist=False)  # what others read of a run needs no such package


def test_ranks_cannot_change_with_state_that_does_not_follow(
    config_file: Config, capsys: Capture
) -> None:
    schedule = "lora: {rank_schedule: {2: 6}}"
    for name, kind in OPTIMIZERS.items():
        config = config_file(schedule, with_optimizer(name))
        if kind.others is None:
            assert train(config, "--overwrite") == 0
            continue
        assert train(config, "--overwrite") == 2
        assert_refused(capsys, f"train.optimizer: {name} cannot follow", "adamw, sgd, lion")


def test_what_does_not_exist_on_a_device_is_told_with_what_does(config_file: Config) -> None:
    for name, kind in OPTIMIZERS.items():
        loaded = loader.load(config_file(with_optimizer(name)))
        require_optimizer(loaded, "cpu")
        require_optimizer(loaded, "cuda")
        if "mps" in kind.devices:
            require_optimizer(loaded, "mps")
            continue
        with pytest.raises(ConfigError, match=f"{name} does not exist on mps, expected one of"):
            require_optimizer(loaded, "mps")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_check_takes_a_step_with_every_optimizer_and_its_size_is_the_planned_one(
    name: str, config_file: Config, capsys: Capture
) -> None:
    config = config_file(WIDE, with_optimizer(name))
    assert main(["check", str(config)]) == 0
    said = capsys.readouterr().out
    assert ("nothing to page" in said) == (name == "adamw-paged")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_space_that_a_checkpoint_needs_is_what_it_takes(
    name: str, config_file: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = []
    save = checkpoint.save

    def saved(*args: object, needs: int, **rest: object) -> None:
        needed.append(needs)
        save(*args, needs=needs, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", saved)
    config = config_file(WIDE, with_optimizer(name))
    assert train(config) == 0
    step = config.parent / "run" / "checkpoints" / "step-000004"
    taken = sum(path.stat().st_size for path in step.iterdir())
    assert needed[-1] - BESIDE <= taken <= needed[-1]
