"""The weights beside their updates: norms, and which of them are looked at for intruders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft.attach import load_
from loractl.engine.report import beside_base
from loractl.engine.report.beside_base import affordable, norm_of, weights_of_adapters
from loractl.lora.intruders import intruders, operations
from loractl.lora.layer import LoraLayer
from loractl.models import load
from tests.engine.report.conftest import REPORTED, Config
from tests.runs import train

Make = Callable[..., Path]


def adapted(base: Path, adapter: Path) -> dict[str, LoraLayer]:
    model = load.load_model(load.locate(str(base)), dtype=torch.float32, device=torch.device("cpu"))
    return {
        name: layer for name, layer in load_(model, adapters.read(adapter)).items()
        if isinstance(layer, LoraLayer)
    }  # fmt: skip


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_norm_is_that_of_the_stored_weight_and_intruders_are_of_the_merged_one(
    architecture: str, base: Make, adapter_dir: Make
) -> None:
    layers = adapted(base(architecture), adapter_dir(base(architecture), size=0.5))
    stored = load_file(base(architecture) / "model.safetensors")
    found = weights_of_adapters(layers, seconds=60.0)
    assert found.keys() == layers.keys()
    for name, weight in found.items():
        W = next(
            t
            for key, t in stored.items()
            if key.endswith(f"{name.removeprefix('transformer.')}.weight")
        )
        assert weight.norm == pytest.approx(float(W.norm()), rel=1e-5)
        laid = W.T if layers[name].transposed else W
        tuned = laid + torch.as_tensor(
            layers[name].delta().T if layers[name].transposed else layers[name].delta()
        )
        assert weight.intruders == intruders(laid, tuned)


def test_the_middle_layer_is_looked_at_first_and_the_time_is_kept(
    base: Make, adapter_dir: Make
) -> None:
    layers = adapted(base("llama"), adapter_dir(base("llama"), target_modules=["q_proj"]))
    first, second = layers
    one = operations(32, 32) / beside_base.OPERATIONS_PER_SECOND
    assert affordable(layers, 0.9 * one) == []
    assert affordable(layers, 1.1 * one) == [second]  # of two layers, the upper is the middle
    assert affordable(layers, 2.1 * one) == [second, first]


def test_of_experts_only_the_norm_is_known(base: Make, adapter_dir: Make) -> None:
    layers = adapted(
        base("mixtral"), adapter_dir(base("mixtral"), target_modules=["experts.down_proj"])
    )
    assert layers, "no experts are adapted"
    stored = load_file(base("mixtral") / "model.safetensors")
    for name, layer in layers.items():
        assert name not in affordable(layers, 1e9)
        number = name.split("layers.")[1].split(".")[0]
        parts = [t for key, t in stored.items() if f"layers.{number}." in key and ".w2." in key]
        whole = torch.stack(parts) if parts else stored[name]
        assert norm_of(layer) == pytest.approx(float(whole.norm()), rel=1e-5)


def test_of_a_model_trained_whole_each_matrix_has_the_norm_of_its_change(
    base: Make, config_file: Config, tmp_path: Path
) -> None:
    assert train(config_file(*REPORTED, "method: full")) == 0
    found = json.loads((tmp_path / "run" / "report.json").read_text())["weights"]
    before = load_file(base("llama") / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    matrices = {name.removesuffix(".weight"): W for name, W in before.items() if W.dim() == 2}
    assert found.keys() == matrices.keys()
    for name, W in matrices.items():
        assert found[name]["norm"] == pytest.approx(float(W.norm()), rel=1e-5)
        change = float((after[f"{name}.weight"] - W).norm())
        assert found[name]["update"] == pytest.approx(change, rel=1e-4) and change > 0
