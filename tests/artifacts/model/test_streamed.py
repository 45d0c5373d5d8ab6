"""Logits computed layer by layer are those of whole models in memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.artifacts import probe
from loractl.artifacts.model import streamed
from loractl.artifacts.model.hollow import Hollow, NotLayerwiseError, TableRows
from loractl.artifacts.peft.adapter import read
from loractl.lora.layer import LoraLayer
from loractl.models.load import head_name, load_model, locate
from loractl.quant.kinds import PACKERS, Quantization
from tests.artifacts.model.conftest import Make, with_adapter

ARCHITECTURES = [
    "llama", "llama-tied", "mistral", "qwen3", "gemma3", "phi3", "opt", "gpt-neox", "gpt2",
    "mixtral",
]  # fmt: skip


class Everything:
    """A witness that keeps all it sees."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        self.layers: list[str] = []

    def merged(self, name: str, tensor: Any) -> None:
        self.found[name] = tensor.clone() if isinstance(tensor, Tensor) else rows_of(tensor)

    def plain(self, name: str, strips: Any) -> None:
        self.tensors[name] = torch.cat([strip.clone() for strip in strips])

    def adapted(self, name: str, layer: LoraLayer) -> None:
        self.layers.append(name)

    def trained(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor.clone()


def rows_of(table: TableRows) -> Tensor:
    return torch.cat(list(table.strips()))


def whole(base: Path) -> Any:
    return load_model(locate(str(base)), dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_sides_give_the_logits_of_whole_models_and_show_each_of_their_tensors(
    architecture: str, dtype: str, base: Make, adapter_dir: Make
) -> None:
    where = base(architecture, dtype)
    targets = ["q_proj"] if architecture == "mixtral" else "all-linear"
    directory = adapter_dir(where, target_modules=targets)
    model, adapted, seen = whole(where), with_adapter(where, directory), Everything()
    ids, source = probe.probe_ids(model), locate(str(where))
    found = streamed.logits_of(
        Hollow(source), read(directory), ids, seen, None, merged=Hollow(source)
    )
    same = {"rtol": 1e-6, "atol": 2e-6}
    plain = probe.probe_logits(model, ids)
    assert found.shaken is None and found.merged is not None
    torch.testing.assert_close(found.merged, plain, **same)
    torch.testing.assert_close(found.base, plain, **same)
    torch.testing.assert_close(found.expected, probe.probe_logits(adapted, ids), **same)
    shown = model.state_dict()
    if model.config.tie_word_embeddings:
        shown.pop(f"{head_name(model)}.weight")  # the embedding, which was shown
    weights = {f"{name}.weight" for name in seen.layers}
    assert seen.found.keys() == shown.keys() and weights
    assert seen.tensors.keys() == shown.keys() - weights
    for name, tensor in shown.items():
        assert torch.equal(seen.found[name], tensor), name
        assert name in weights or torch.equal(seen.tensors[name], tensor), name


@pytest.mark.parametrize("targets", ["all-linear", ["embedding", "head"]])
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "mixtral"])
def test_a_base_is_shaken_by_no_more_than_rounding_makes(
    architecture: str, targets: Any, base: Make, adapter_dir: Make
) -> None:
    where = base(architecture, "bfloat16")
    directory = adapter_dir(where, target_modules=targets)
    adapted, source = with_adapter(where, directory), locate(str(where))
    ids, seen = probe.probe_ids(adapted), Everything()
    found = streamed.logits_of(Hollow(source), read(directory), ids, seen, lambda exact: exact)
    torch.testing.assert_close(
        found.expected, probe.probe_logits(adapted, ids), rtol=1e-6, atol=2e-6
    )
    # Nothing was rounded: the merged weights in float32 give what the adapter gives.
    assert found.shaken is not None and found.merged is None
    bound = 1e-5 * max(1.0, float(found.expected.abs().max()))
    assert float((found.shaken - found.expected).abs().max()) < bound
    assert float((found.expected - found.base).abs().max()) > 100 * bound
    assert seen.layers and not {f"{name}.weight" for name in seen.layers} & seen.tensors.keys()


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", PACKERS)
def test_a_packed_base_gives_the_logits_of_the_numbers_it_computes_with(
    kind: str, head: bool, base: Make, adapter_dir: Make
) -> None:
    where = base("llama")
    source = replace(locate(str(where)), quantization=Quantization(kind, "bfloat16", head))
    packed = load_model(source, dtype=torch.float32, device=torch.device("cpu"), dense=True)
    ids = probe.probe_ids(packed)
    found = streamed.logits_of(Hollow(source), read(adapter_dir(where)), ids, Everything(), None)
    torch.testing.assert_close(found.base, probe.probe_logits(packed, ids), rtol=1e-6, atol=2e-6)
    plain = probe.probe_logits(whole(where), ids)
    assert float((plain - found.base).abs().max()) > 1e-3


def test_a_gguf_base_cannot_run_layer_by_layer(gguf_base: Callable[..., Path]) -> None:
    with pytest.raises(NotLayerwiseError, match="GGUF"):
        Hollow(locate(str(gguf_base("llama"))))
