"""Adapters in whole models: what changes, what does not, and the way back."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from loractl.lora.inject import adaptable, adapters, inject_, merge_, remove_
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import RankSpec, resolve

ARCHITECTURES = ["llama", "llama-tied", "gemma3", "phi3", "opt", "gpt-neox", "gpt2"]
Base = Callable[..., Path]
Logits = Callable[..., Tensor]


def loaded(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model.eval()


def injected(model: nn.Module, **options: Any) -> dict[str, LoraLayer]:
    """Adapters on every linear layer, the head and the embedding."""
    kinds = {name: kind for name, kind in adaptable(model).items() if "wpe" not in name}
    spec = RankSpec(4, 8, target_modules=list(kinds))
    return inject_(model, resolve(spec, kinds), **options)


def randomise_(layers: dict[str, LoraLayer]) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in layers.values():
            layer.A.normal_(std=0.2)
            layer.B.normal_(std=0.2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("init", ["default", "gaussian"])
def test_a_freshly_adapted_model_answers_bit_for_bit_as_before(
    architecture: str, init: str, base: Base, logits: Logits
) -> None:
    model = loaded(base(architecture))
    before = logits(model)
    layers = injected(model, init=init)
    assert torch.equal(logits(model), before)
    assert {layer.kind for layer in layers.values()} <= {"linear", "conv1d", "embedding"}
    randomise_(layers)
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_taking_the_adapters_out_puts_the_very_base_back(
    architecture: str, base: Base, logits: Logits
) -> None:
    model = loaded(base(architecture))
    modules = dict(model.named_modules())
    before = logits(model)
    randomise_(injected(model))
    remove_(model)
    assert dict(model.named_modules()) == modules
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merging_keeps_the_answers_and_leaves_a_plain_model(
    architecture: str, base: Base, logits: Logits
) -> None:
    model = loaded(base(architecture))
    types = {name: type(module) for name, module in model.named_modules()}
    randomise_(injected(model))
    expected = logits(model)
    merge_(model)
    assert {name: type(module) for name, module in model.named_modules()} == types
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["lm_head", "model.embed_tokens"])
def test_merging_one_of_two_tied_layers_leaves_the_other(target: str, base: Base) -> None:
    model = loaded(base("llama-tied"))
    old = model.lm_head.weight.clone()
    spec = RankSpec(4, 8, target_modules=[target])
    randomise_(inject_(model, resolve(spec, adaptable(model))))
    merge_(model)
    table = model.model.embed_tokens
    weights = {"lm_head": model.lm_head.weight, "model.embed_tokens": table.weight}
    assert not torch.equal(weights.pop(target), old)
    assert torch.equal(*weights.values(), old)


def test_only_a_and_b_are_trained(base: Base) -> None:
    model = loaded(base("llama"))
    layers = injected(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.{half}" for name in layers for half in "AB"}
    assert adapters(model) == layers


def test_training_leaves_every_base_weight_bit_for_bit_and_without_gradient(base: Base) -> None:
    model = loaded(base("llama"))
    before = copy.deepcopy(model.state_dict())
    layers = injected(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
    ids = torch.arange(40)[None] % 7
    losses = []
    for _ in range(3):
        scores = model(input_ids=ids).logits[0, :-1]
        loss = nn.functional.cross_entropy(scores, ids[0, 1:])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(torch.count_nonzero(layer.delta()) for layer in layers.values())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
    remove_(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_initial_values_depend_on_the_seed_and_not_on_dtype_or_other_draws(base: Base) -> None:
    def start(dtype: torch.dtype, seed: int) -> Tensor:
        layers = injected(loaded(base("llama"), dtype), seed=seed)
        return torch.cat([layer.A.detach().flatten() for layer in layers.values()])

    first = start(torch.float32, 5)
    torch.manual_seed(99)
    assert torch.equal(first, start(torch.bfloat16, 5))
    assert not torch.equal(first, start(torch.float32, 6))


def test_no_two_layers_start_alike(base: Base) -> None:
    layers = injected(loaded(base("llama")))
    up = [layer.A for name, layer in layers.items() if name.endswith("up_proj")]
    assert len(up) == 2 and not torch.equal(up[0], up[1])


def test_dropout_and_scale_reach_the_layers(base: Base) -> None:
    for layer in injected(loaded(base("llama")), dropout=0.3).values():
        assert (layer.dropout, layer.scale, layer.rank) == (0.3, 2.0, 4)


def test_positions_that_take_a_mask_carry_no_adapter(base: Base) -> None:
    names = adaptable(loaded(base("opt")))
    assert "model.decoder.embed_tokens" in names
    assert "model.decoder.embed_positions" not in names


def test_conv1d_is_told_from_linear(base: Base) -> None:
    kinds = adaptable(loaded(base("gpt2")))
    assert kinds["transformer.h.0.attn.c_attn"] == "conv1d"
    assert kinds["lm_head"] == "linear" and kinds["transformer.wte"] == "embedding"
