"""Logits computed layer by layer are those of whole models in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.artifacts import probe
from loractl.artifacts.model import streamed
from loractl.artifacts.model.hollow import Hollow, NotLayerwiseError
from loractl.artifacts.peft.adapter import read
from loractl.lora.layer import LoraLayer
from loractl.models.load import load_model, locate
from tests.artifacts.model.conftest import Make, with_adapter

ARCHITECTURES = [
    "llama", "llama-tied", "mistral", "qwen3", "gemma3", "phi3", "opt", "gpt-neox", "gpt2",
    "mixtral",
]  # fmt: skip


class Everything:
    """A witness that keeps all it sees."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.layers: list[str] = []

    def plain(self, name: str, strips: Any) -> None:
        self.tensors[name] = torch.cat([strip.clone() for strip in strips])

    def same(self, name: str, other: str) -> None:
        self.tensors[name] = self.tensors[other]

    def adapted(self, name: str, layer: LoraLayer) -> None:
        self.layers.append(name)

    def trained(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor.clone()


def whole(base: Path) -> Any:
    return load_model(locate(str(base)), dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_gives_the_same_logits_and_shows_each_of_its_tensors(
    architecture: str, dtype: str, base: Make
) -> None:
    where, seen = base(architecture, dtype), Everything()
    model = whole(where)
    ids = probe.probe_ids(model)
    found = streamed.of_directory(locate(str(where)), ids, seen)
    torch.testing.assert_close(found, probe.probe_logits(model, ids), rtol=1e-6, atol=1e-6)
    expected = model.state_dict()
    assert seen.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(seen.tensors[name], tensor), name


@pytest.mark.parametrize("targets", ["all-linear", ["embedding", "head"]])
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "mixtral"])
def test_base_and_base_with_adapter_give_the_same_logits_in_one_pass(
    architecture: str, targets: Any, base: Make, adapter_dir: Make
) -> None:
    where = base(architecture, "bfloat16")
    directory = adapter_dir(where, target_modules=targets)
    model, adapted = whole(where), with_adapter(where, directory)
    ids, seen = probe.probe_ids(model), Everything()
    found = streamed.of_adapted(
        Hollow(locate(str(where))), read(directory), ids, seen, lambda exact: exact
    )
    same = {"rtol": 1e-6, "atol": 2e-6}
    torch.testing.assert_close(found.base, probe.probe_logits(model, ids), **same)
    torch.testing.assert_close(found.expected, probe.probe_logits(adapted, ids), **same)
    # Nothing was rounded: the merged weights in float32 give what the adapter gives.
    assert found.shaken is not None
    bound = 1e-5 * max(1.0, float(found.expected.abs().max()))
    assert float((found.shaken - found.expected).abs().max()) < bound
    assert float((found.expected - found.base).abs().max()) > 100 * bound
    modules = {name.removesuffix(".weight") for name in model.state_dict()}
    assert {*seen.layers} <= modules and seen.layers
    assert not {f"{name}.weight" for name in seen.layers} & seen.tensors.keys()


def test_a_gguf_base_cannot_run_layer_by_layer(gguf_base: Callable[..., Path]) -> None:
    with pytest.raises(NotLayerwiseError, match="GGUF"):
        Hollow(locate(str(gguf_base("llama"))))
