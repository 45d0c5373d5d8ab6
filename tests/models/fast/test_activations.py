"""Each fused activation against the module that it stands for."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2FN
from transformers.models.bloom.modeling_bloom import BloomGelu

from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.models.fast.activations import Fused, activation_of, fuse_activations_
from loractl.models.forward import hidden_states
from loractl.planning import fast_layer_bytes, layer_bytes
from tests.tiny import batch_of

MODULES: dict[str, nn.Module] = {
    **{name: ACT2FN[name] for name in sorted(fast_layer_bytes.ACTIVATIONS)},
    "bloom": BloomGelu(),
    "torch gelu": nn.GELU(),
    "torch gelu, tanh": nn.GELU("tanh"),
}
EDGES = [0.0, -0.0, 1e-30, 0.6, -0.6, 5.0, -5.0, 20.0, -20.0, 90.0, -90.0]


def run(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values and gradients, both in float64."""
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    dy = torch.cos(torch.arange(y.numel())).view(y.shape)
    y.backward(dy.to(y.dtype))
    assert leaf.grad is not None and y.dtype == leaf.grad.dtype == x.dtype
    return y.detach().double(), leaf.grad.double()


def values() -> Tensor:
    """(2, 3, 64), part of a wider tensor as the halves of a product are."""
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0))[..., 64:] * 3
    x[0, 0, : len(EDGES)] = torch.tensor(EDGES)
    return x


def fused(module: nn.Module) -> nn.Module:
    holder = nn.ModuleDict({"act": copy.deepcopy(module)})
    assert fuse_activations_(holder) == 1 and isinstance(holder["act"], Fused)
    return holder["act"]


@pytest.mark.parametrize("name", MODULES)
def test_values_and_gradients_are_those_of_the_module(name: str) -> None:
    for found, expected in zip(
        run(fused(MODULES[name]), values()), run(MODULES[name], values()), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_in_16_bit_they_are_no_further_from_the_exact_ones(name: str, dtype: torch.dtype) -> None:
    x = values().to(dtype)
    exact = run(ACT2FN["gelu_pytorch_tanh"], x.double())
    if activation_of(MODULES[name]) != "gelu_tanh":
        exact = run(MODULES[name], x.double())
    ours, theirs = run(fused(MODULES[name]), x), run(MODULES[name], x)
    for found, their, right in zip(ours, theirs, exact, strict=True):
        assert (found - right).norm() <= 1.001 * (their - right).norm()


def test_only_the_input_is_kept() -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = values().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused(ACT2FN["gelu_new"])(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]


@pytest.mark.parametrize("name", ["relu", "tanh", "quick_gelu", "relu2", "gelu_10", "xielu"])
def test_other_activations_stay(name: str) -> None:
    module = ACT2FN[name]
    holder = nn.ModuleDict({"act": module})
    assert fuse_activations_(holder) == 0 and holder["act"] is module
    assert name not in fast_layer_bytes.ACTIVATIONS


def test_one_with_a_hook_or_that_writes_into_its_input_stays() -> None:
    hooked = nn.SiLU()
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    assert fuse_activations_(nn.ModuleDict({"a": hooked, "b": nn.SiLU(inplace=True)})) == 0


def test_one_module_in_two_places_is_fused_in_both() -> None:
    shared = nn.SiLU()
    holder = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared})})
    assert fuse_activations_(holder) == 2
    assert fuse_activations_(holder) == 2  # again, to no other end


SMALL: dict[str, Any] = {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "attn_pdrop": 0.0,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "phi": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_same_gradients_and_the_same_tensors(name: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **MODELS[name], **SMALL)
    model = AutoModelForCausalLM.from_config(config)
    inject_(model, resolve(RankSpec(4, 8, "all-linear"), adaptable(model), head="lm_head"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    other = copy.deepcopy(model)
    assert fuse_activations_(other) == 2
    assert list(other.state_dict()) == list(model.state_dict())
    batch = batch_of([6], [4], untrained=0.5)
    sums = []
    for one in (model, other):
        hidden = hidden_states(one, batch)
        (hidden * torch.linspace(-1, 1, 32)).sum().backward()
        sums.append([hidden, *(p.grad for p in one.parameters() if p.grad is not None)])
    assert len(sums[0]) > 8
    for found, expected in zip(*sums, strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_the_estimate_counts_one_value_for_those_that_are_fused_and_more_where_not() -> None:
    assert set(layer_bytes.KEPT_BY_ACTIVATION) - fast_layer_bytes.ACTIVATIONS == {
        "gelu_10",
        "quick_gelu",
    }
    for name, values_kept in layer_bytes.KEPT_BY_ACTIVATION.items():
        kept: dict[int, int] = {}
        alive: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()  # noqa: B023
            alive.append(tensor)  # noqa: B023
            return tensor

        x = torch.randn(100, 64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ACT2FN[name](x * 1)
        assert sum(kept.values()) == values_kept * 4 * x.numel(), name
