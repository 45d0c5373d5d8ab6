"""`loractl train` with method: full: a model that transformers loads, and a run that goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loractl.cli.main import main
from tests.commands.conftest import Capture, Config
from tests.runs import timeless, train, tree


def test_a_full_run_writes_a_model_that_transformers_loads_with_the_trained_weights(
    config_file: Config, tmp_path: Path, base: Any, capsys: Capture
) -> None:
    config = config_file("method: full", "train: {steps: 3, learning_rate: 1e-3}")
    assert train(config) == 0
    run = tmp_path / "run"
    assert not (run / "adapter").exists()
    model = AutoModelForCausalLM.from_pretrained(run / "model", local_files_only=True)
    trained = load_file(run / "checkpoints" / "step-000003" / "model.safetensors")
    before = AutoModelForCausalLM.from_pretrained(base("llama")).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name]) and not torch.equal(value, before[name])
    capsys.readouterr()
    assert main(["generate", "--model", str(run), "--prompt", "hi", "--max-new-tokens", "3"]) == 0


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2"])
def test_a_full_run_of_tied_weights_is_loaded_with_one_weight(
    architecture: str, config_file: Config, tmp_path: Path, base: Any
) -> None:
    config = config_file("method: full", "train: {steps: 1}", model=base(architecture))
    assert train(config) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embeddings.weight
    trained = load_file(tmp_path / "run" / "checkpoints" / "step-000001" / "model.safetensors")
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in trained.items())


def test_a_full_run_is_resumed_bit_for_bit(
    config_file: Config, tmp_path: Path, stop_after: Callable[..., None]
) -> None:
    config = config_file("method: full", "train: {steps: 4, learning_rate: 1e-3}")
    assert train(config, "--out", str(tmp_path / "whole")) == 0
    stop_after(3)
    assert train(config) == 130
    assert train(config, "--resume") == 0
    assert tree(tmp_path / "whole" / "model") == tree(tmp_path / "run" / "model")
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "run")
