"""Fused experts: the thin products are those of the dense weights, in every layout there is."""

import pytest
import torch
from torch import Tensor, nn
from transformers import GptOssConfig, MixtralConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from loractl.lora.dense import MatrixSize
from loractl.lora.experts import LoraExperts, packed, products_of, unpacked
from loractl.lora.inject import adaptable, inject_, merge_, remove_, sizes_of
from loractl.lora.ranks import ModuleRank

TOKENS, TOP_K = 13, 2
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_local_experts": 4}


def block(name: str) -> nn.Module:
    """A model of nothing but experts, its weights random."""
    torch.manual_seed(0)
    if name == "mixtral":
        experts: nn.Module = MixtralExperts(MixtralConfig(**SHAPE))
    else:
        experts = GptOssExperts(GptOssConfig(**SHAPE, head_dim=8))
    experts.config._experts_implementation = "grouped_mm"
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    return nn.ModuleDict({"experts": experts}).requires_grad_(False)


def routed(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, 16, generator=generator)
    scores = torch.rand(TOKENS, 4, generator=generator)
    weights, index = scores.topk(TOP_K)
    index[index == 3] = 2  # an expert that nobody asks
    return hidden, index, weights


layouts = pytest.mark.parametrize("layout", ["mixtral", "gpt-oss"])


def adapted(layout: str, *, dropout: float = 0.0) -> tuple[nn.Module, dict[str, LoraExperts]]:
    model = block(layout)
    names = [f"experts.{name}" for name in products_of(model["experts"])]
    assert names == ["experts.gate_up_proj", "experts.down_proj"]
    ranks = {name: ModuleRank(3, 6, 2.0) for name in names}
    layers = inject_(model, ranks, dropout=dropout)
    return model, layers  # type: ignore[return-value]


@layouts
def test_a_fresh_adapter_changes_no_bit(layout: str) -> None:
    model = block(layout)
    before = model["experts"](*routed())
    model, _ = adapted(layout)
    assert torch.equal(model["experts"](*routed()), before)


@layouts
def test_it_answers_as_the_merged_experts_and_its_gradients_are_theirs(layout: str) -> None:
    model, layers = adapted(layout)
    for layer in layers.values():
        nn.init.normal_(layer.A, std=0.3)
        nn.init.normal_(layer.B, std=0.3)
    hidden, index, weights = routed()
    hidden.requires_grad_()
    direction = torch.randn(TOKENS, 16, generator=torch.Generator().manual_seed(3))
    found = model["experts"](hidden, index, weights)
    found.backward(direction)
    grad_hidden = hidden.grad

    dense = block(layout)["experts"]
    again = hidden.detach().clone().requires_grad_()
    factors = {}
    for name, layer in layers.items():
        A, B = (p.detach().clone().requires_grad_() for p in (layer.A, layer.B))
        A3, B3 = unpacked(A, B, 4)
        delta = 2.0 * (B3 @ A3)
        factors[name] = A, B
        parameter = name.rpartition(".")[2]
        W = getattr(dense, parameter).detach() + (delta.mT if layer.transposed else delta)
        del dense._parameters[parameter]
        setattr(dense, parameter, W)
    expected = dense(again, index, weights)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    expected.backward(direction)
    torch.testing.assert_close(grad_hidden, again.grad, rtol=1e-4, atol=1e-4)
    for name, layer in layers.items():
        for ours, theirs in zip((layer.A, layer.B), factors[name], strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)

    merge_(model)
    torch.testing.assert_close(model["experts"](*routed()), found, rtol=1e-4, atol=1e-4)


@layouts
def test_dropout_is_on_the_adapters_input_alone(layout: str) -> None:
    model, layers = adapted(layout, dropout=0.5)
    before = model["experts"](*routed())
    for layer in layers.values():
        nn.init.normal_(layer.B, std=0.3)
    model.train()
    assert not torch.equal(model["experts"](*routed()), model["experts"](*routed()))
    model.eval()
    assert torch.equal(model["experts"](*routed()), model["experts"](*routed()))
    for layer in layers.values():
        layer.enabled = False
    assert torch.equal(model["experts"](*routed()), before)


@layouts
def test_the_model_is_put_back_as_it_was(layout: str) -> None:
    model, _ = adapted(layout)
    remove_(model)
    assert [type(m) for m in model["experts"].modules()] == [
        type(m) for m in block(layout)["experts"].modules()
    ]
    kinds = adaptable(model)
    assert set(kinds.values()) == {"experts-transposed" if layout == "gpt-oss" else "experts"}
    found = sizes_of(model, kinds)
    assert found == {
        "experts.gate_up_proj": MatrixSize(16, 48, 4),
        "experts.down_proj": MatrixSize(24, 16, 4),
    }


def test_packing_is_undone_by_unpacking() -> None:
    A, B = torch.randn(4, 3, 16), torch.randn(4, 5, 3)
    flat = packed(A, B)
    assert flat[0].shape == (12, 16) and flat[1].shape == (5, 12)
    again = unpacked(*flat, 4)
    assert torch.equal(again[0], A) and torch.equal(again[1], B)


def test_no_token_at_all_is_no_error() -> None:
    model, _ = adapted("mixtral")
    hidden, index, weights = routed()
    assert model["experts"](hidden[:0], index[:0], weights[:0]).shape == (0, 16)


def test_modules_that_compute_in_another_way_carry_none() -> None:
    assert products_of(nn.Linear(2, 2)) == {}
    odd = nn.Module()
    odd.down_proj = nn.Parameter(torch.zeros(2, 3, 4))
    assert products_of(odd) == {}
