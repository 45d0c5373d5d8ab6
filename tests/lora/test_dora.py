"""DoRA against its formula written out, against PEFT's layers, and what of it must hold exactly."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from loractl.lora import dense
from loractl.lora.dora import DoraConv1D, DoraEmbedding, DoraLayer, DoraLinear
from loractl.lora.init import default, embedding

D_IN, D_OUT, RANK, SCALE = 10, 7, 3, 1.5


def random_conv1d() -> nn.Module:
    conv = Conv1D(D_OUT, D_IN)
    nn.init.normal_(conv.weight)
    nn.init.normal_(conv.bias)
    return conv


BASES: dict[str, tuple[type[DoraLayer], Callable[[], nn.Module]]] = {
    "linear": (DoraLinear, lambda: nn.Linear(D_IN, D_OUT)),
    "linear-no-bias": (DoraLinear, lambda: nn.Linear(D_IN, D_OUT, bias=False)),
    "conv1d": (DoraConv1D, random_conv1d),
    "embedding": (DoraEmbedding, lambda: nn.Embedding(D_IN, D_OUT)),
    "gemma-embedding": (
        DoraEmbedding,
        lambda: Gemma3TextScaledWordEmbedding(D_IN, D_OUT, 0, embed_scale=3.0),
    ),
}
kinds = pytest.mark.parametrize("kind", BASES)


def make(
    kind: str,
    *,
    trained: bool = True,
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
) -> DoraLayer:
    """A layer over a random base; `trained`: A, B and m random, else as they start."""
    torch.manual_seed(0)
    layer_class, base = BASES[kind]
    frozen = base().to(dtype).requires_grad_(False)
    init = embedding if "embedding" in kind else default
    A, B = init(RANK, D_IN, D_OUT, torch.Generator().manual_seed(1))
    layer = layer_class(frozen, A, B, scale=SCALE, dropout=dropout)
    if trained:
        with torch.no_grad():
            layer.A.normal_(std=0.5)
            layer.B.normal_(std=0.5)
            layer.m.mul_(torch.rand_like(layer.m) + 0.5)
    return layer


def inputs(kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if "embedding" in kind:
        return torch.randint(0, D_IN, (2, 5), generator=generator)
    return torch.randn(2, 5, D_IN, generator=generator).to(dtype)


def plain_weight(layer: DoraLayer) -> Tensor:
    """The base weight as (d_out, d_in)."""
    return layer.weight if layer.kind == "linear" else layer.weight.T


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_fresh_layer_answers_bit_for_bit_as_its_base(
    kind: str, dtype: torch.dtype, dropout: float
) -> None:
    layer = make(kind, trained=False, dtype=dtype, dropout=dropout).train()
    x = inputs(kind, dtype)
    assert torch.equal(layer(x), layer.base(x)) and layer(x).dtype == dtype
    norm = plain_weight(layer).double().norm(dim=1)
    torch.testing.assert_close(layer.m.detach().double(), norm, rtol=1e-6, atol=0)
    assert {p.dtype for p in (layer.A, layer.B, layer.m)} == {torch.float32}


@kinds
def test_output_and_gradients_are_those_of_the_formula_with_a_constant_norm(kind: str) -> None:
    layer = make(kind)
    x = inputs(kind)
    A, B, m = (p.detach().clone().requires_grad_() for p in (layer.A, layer.B, layer.m))
    one_hot = nn.functional.one_hot(x, D_IN).float() if not x.is_floating_point() else x
    factor = float(getattr(layer.base, "embed_scale", 1.0))
    V = plain_weight(layer) + SCALE * (B @ A)
    W = m[:, None] * V / V.norm(dim=1, keepdim=True).detach()
    expected = one_hot @ W.T * factor + (0.0 if layer.bias is None else layer.bias)
    found = layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    found.backward(direction)
    expected.backward(direction)
    for ours, theirs in ((layer.A, A), (layer.B, B), (layer.m, m)):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@kinds
def test_at_the_start_the_magnitude_has_a_gradient(kind: str) -> None:
    layer = make(kind, trained=False)
    layer(inputs(kind)).sum().backward()
    assert layer.m.grad is not None and torch.count_nonzero(layer.m.grad) == D_OUT


@kinds
def test_the_norm_from_thin_products_is_the_norm(kind: str) -> None:
    layer = make(kind)
    exact = plain_weight(layer).double() + SCALE * (layer.B.double() @ layer.A.double())
    torch.testing.assert_close(layer.norm().double(), exact.norm(dim=1), rtol=1e-6, atol=0)
    low = make(kind, dtype=torch.bfloat16)
    exact = plain_weight(low).double() + SCALE * (low.B.double() @ low.A.double())
    torch.testing.assert_close(low.norm().double(), exact.norm(dim=1), rtol=1e-6, atol=0)


@kinds
def test_strips_give_the_norm_and_the_merge_of_the_whole(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [make(kind, dtype=torch.bfloat16) for _ in range(2)]
    expected = (whole[0].norm(), whole[0].merged_weight(), whole[0].delta())
    monkeypatch.setattr(dense, "STRIP", 3 * D_IN)
    assert len(dense.strips(whole[1].weight.shape)) > 1
    torch.testing.assert_close(whole[1].norm(), expected[0], rtol=1e-6, atol=0)
    assert torch.equal(whole[1].merged_weight(), expected[1])
    torch.testing.assert_close(whole[1].delta(), expected[2], rtol=1e-6, atol=1e-7)


def test_the_norm_follows_a_and_b_and_is_not_computed_twice() -> None:
    """A tensor that is kept is the same one when it is asked for again."""
    layer = make("linear")
    first = layer.norm()
    before = first.clone()
    layer(inputs("linear")), layer(inputs("linear"))
    torch.optim.SGD(layer.parameters(), lr=1.0)  # no step, no change
    layer(inputs("linear")).sum().backward()
    assert layer.norm() is first and torch.equal(first, before)
    torch.optim.SGD([layer.A, layer.B], lr=1.0).step()
    second = layer.norm()
    assert not torch.equal(second, before) and layer.norm() is second
    layer.double()
    third = layer.norm()
    assert third.dtype == torch.float64 and layer.norm() is third
    layer.count_from_(layer.A, layer.B)
    torch.testing.assert_close(layer.norm(), layer.weight.norm(dim=1))


@kinds
def test_the_length_of_a_row_of_the_direction_does_not_matter(kind: str) -> None:
    """W + s B A twice as long in a row, m the same: the same layer."""
    layer, x = make(kind), inputs(kind)
    expected = layer(x)
    base, B = copy.deepcopy(layer.base), nn.Parameter(layer.B.detach().clone())
    with torch.no_grad():
        for tensor in (base.weight.T if layer.transposed else base.weight, B):
            tensor[2] *= 2
        other = type(layer)(base, layer.A, B, scale=SCALE)
        other.m.copy_(layer.m)
    torch.testing.assert_close(
        other(x) - (0 if other.bias is None else other.bias),
        expected - (0 if layer.bias is None else layer.bias),
        rtol=1e-5,
        atol=1e-5,
    )


@kinds
def test_the_base_alone_with_the_merged_weight_answers_the_same(kind: str) -> None:
    layer, x = make(kind), inputs(kind)
    merged = copy.deepcopy(layer.base)
    merged.weight = nn.Parameter(layer.merged_weight())
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight + layer.delta(), layer.merged_weight())


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merged_weight_is_rounded_once(kind: str, dtype: torch.dtype) -> None:
    layer = make(kind, dtype=dtype)
    V = plain_weight(layer).double() + SCALE * (layer.B.double() @ layer.A.double())
    exact = (layer.m.double()[:, None] * V / V.norm(dim=1, keepdim=True)).detach()
    exact = exact.T if layer.transposed else exact
    assert torch.equal(layer.merged_weight(), exact.float().to(dtype))
    hollow = type(layer)(
        copy.deepcopy(layer.base).to("meta"), layer.A, layer.B, scale=SCALE, dropout=0.0
    )
    with torch.no_grad():
        hollow.m.copy_(layer.m)
    assert torch.equal(hollow.merged_weight(layer.weight), layer.merged_weight())


def test_an_output_without_weights_stays_without_and_is_no_nan() -> None:
    layer = make("linear", trained=False)
    with torch.no_grad():
        layer.weight[1] = 0
    layer = DoraLinear(layer.base, layer.A, layer.B, scale=SCALE)
    x = inputs("linear")
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y, layer.base(x))
    assert all(torch.isfinite(p.grad).all() for p in (layer.A, layer.B, layer.m))
    assert torch.isfinite(layer.merged_weight()).all()


@pytest.mark.parametrize("kind", ["linear", "linear-no-bias", "conv1d"])
def test_dropout_falls_where_that_of_peft_falls(kind: str) -> None:
    ours = make(kind, dropout=0.5).train()
    holder: Any = nn.ModuleDict({"x": copy.deepcopy(ours.base)})
    config = LoraConfig(
        r=RANK, lora_alpha=SCALE * RANK, target_modules=["x"], lora_dropout=0.5, use_dora=True,
        fan_in_fan_out=kind == "conv1d",
    )  # fmt: skip
    theirs = inject_adapter_in_model(config, holder).train()["x"]
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(ours.A)
        theirs.lora_B["default"].weight.copy_(ours.B)
        theirs.lora_magnitude_vector["default"].weight.copy_(ours.m)
    x = inputs(kind)
    answers = []
    for layer in (ours, theirs):
        torch.manual_seed(4)
        answers.append(layer(x))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(answers[0], ours.eval()(x))
