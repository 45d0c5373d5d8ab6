"""The layers against the formula written out, and what of it must hold exactly."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from loractl.lora.init import default, embedding
from loractl.lora.layer import LoraConv1D, LoraEmbedding, LoraLayer, LoraLinear

D_IN, D_OUT, RANK, SCALE = 10, 7, 3, 1.5


class FloatScaledEmbedding(nn.Embedding):
    """As Bart has it: the scale is a plain number."""

    embed_scale = 2.5

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embed_scale


def random_conv1d() -> nn.Module:
    conv = Conv1D(D_OUT, D_IN)
    nn.init.normal_(conv.weight)
    nn.init.normal_(conv.bias)
    return conv


BASES: dict[str, tuple[type[LoraLayer], Callable[[], nn.Module]]] = {
    "linear": (LoraLinear, lambda: nn.Linear(D_IN, D_OUT)),
    "linear-no-bias": (LoraLinear, lambda: nn.Linear(D_IN, D_OUT, bias=False)),
    "conv1d": (LoraConv1D, random_conv1d),
    "embedding": (LoraEmbedding, lambda: nn.Embedding(D_IN, D_OUT, padding_idx=0)),
    "gemma-embedding": (
        LoraEmbedding,
        lambda: Gemma3TextScaledWordEmbedding(D_IN, D_OUT, 0, embed_scale=3.0),
    ),
    "bart-embedding": (LoraEmbedding, lambda: FloatScaledEmbedding(D_IN, D_OUT)),
}
kinds = pytest.mark.parametrize("kind", BASES)


def make(
    kind: str,
    *,
    trained: bool = True,
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
) -> LoraLayer:
    """A layer over a random base; `trained`: both A and B random, else as they start."""
    torch.manual_seed(0)
    layer_class, base = BASES[kind]
    frozen = base().to(dtype).requires_grad_(False)
    if trained:
        A, B = torch.randn(RANK, D_IN), torch.randn(D_OUT, RANK)
    else:
        init = embedding if layer_class is LoraEmbedding else default
        A, B = init(RANK, D_IN, D_OUT, torch.Generator().manual_seed(1))
    return layer_class(frozen, A, B, scale=SCALE, dropout=dropout)


def inputs(kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if "embedding" in kind:
        return torch.randint(0, D_IN, (2, 5), generator=generator)
    return torch.randn(2, 5, D_IN, generator=generator).to(dtype)


def plain_weight(layer: LoraLayer) -> Tensor:
    """The base weight as (d_out, d_in)."""
    return layer.weight if layer.kind == "linear" else layer.weight.T


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fresh_layer_answers_bit_for_bit_as_its_base(kind: str, dtype: torch.dtype) -> None:
    layer = make(kind, trained=False, dtype=dtype)
    x = inputs(kind, dtype)
    assert torch.equal(layer(x), layer.base(x))
    assert layer(x).dtype == dtype
    assert layer.A.dtype == layer.B.dtype == torch.float32


@kinds
def test_output_and_gradients_are_those_of_the_formula(kind: str) -> None:
    layer = make(kind)
    x = inputs(kind)
    A, B = (p.detach().clone().requires_grad_() for p in (layer.A, layer.B))
    one_hot = nn.functional.one_hot(x, D_IN).float() if not x.is_floating_point() else x
    factor = float(getattr(layer.base, "embed_scale", 1.0))
    bias = 0.0 if layer.bias is None else layer.bias
    expected = one_hot @ (plain_weight(layer) + SCALE * (B @ A)).T * factor + bias
    found = layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    found.backward(direction)
    expected.backward(direction)
    torch.testing.assert_close(layer.A.grad, A.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.B.grad, B.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_at_the_start_a_has_no_gradient_and_b_the_one_of_the_formula(kind: str) -> None:
    layer = make(kind, trained=False)
    x = inputs(kind)
    y = layer(x)
    G = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    y.backward(G)
    assert layer.A.grad is not None and torch.count_nonzero(layer.A.grad) == 0
    expected = SCALE * G.flatten(0, 1).T @ (x.flatten(0, 1) @ layer.A.detach().T)
    torch.testing.assert_close(layer.B.grad, expected, rtol=1e-5, atol=1e-5)


def test_at_the_start_b_of_an_embedding_has_no_gradient_and_a_has_one() -> None:
    layer = make("embedding", trained=False)
    layer(inputs("embedding")).sum().backward()
    assert layer.B.grad is not None and torch.count_nonzero(layer.B.grad) == 0
    assert layer.A.grad is not None and torch.count_nonzero(layer.A.grad) > 0


@kinds
def test_the_base_alone_with_the_merged_weight_answers_the_same(kind: str) -> None:
    layer = make(kind)
    x = inputs(kind)
    merged = copy.deepcopy(layer.base)
    merged.weight = nn.Parameter(layer.merged_weight())
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-5, atol=1e-5)
    assert layer.delta().shape == layer.weight.shape


@kinds
def test_the_update_has_at_most_the_rank_of_the_layer(kind: str) -> None:
    layer = make(kind)
    moved = layer.merged_weight().double() - layer.weight.double()
    assert torch.linalg.matrix_rank(moved, rtol=1e-5) == RANK == layer.rank


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@kinds
def test_a_merged_weight_is_rounded_once(kind: str, dtype: torch.dtype) -> None:
    layer = make(kind, dtype=dtype)
    B, A = layer.B.detach().double(), layer.A.detach().double()
    exact = plain_weight(layer).double() + SCALE * (B @ A)
    exact = exact if layer.kind == "linear" else exact.T
    found = layer.merged_weight()
    assert found.dtype == dtype
    spacing = torch.finfo(dtype).eps * 2.0 ** (torch.frexp(exact)[1] - 1).double()
    assert bool(((found.double() - exact).abs() <= spacing / 2 + 1e-6).all())
    assert torch.equal(found, layer.merged_weight(dtype=torch.float32).to(dtype))
    twice = layer.weight + layer.delta().to(dtype)
    assert not torch.equal(found, twice), "the test cannot tell one rounding from two"


def test_a_weight_given_from_outside_is_merged_as_the_layers_own() -> None:
    layer = make("conv1d")
    weight = layer.weight.clone()
    expected = layer.merged_weight()
    hollow = LoraConv1D(Conv1D(D_OUT, D_IN).to("meta"), layer.A, layer.B, scale=SCALE)
    assert hollow.A.device.type == "cpu"
    assert torch.equal(hollow.merged_weight(weight), expected)
    assert hollow.merged_weight(weight, dtype=torch.bfloat16).dtype == torch.bfloat16


@kinds
def test_a_disabled_layer_is_its_base(kind: str) -> None:
    layer = make(kind)
    x = inputs(kind)
    layer.enabled = False
    assert torch.equal(layer(x), layer.base(x))
    layer.enabled = True
    assert not torch.equal(layer(x), layer.base(x))


def identity_layer(dropout: float) -> LoraLinear:
    """A layer whose update is its input after dropout: A = B = 1, scale 1."""
    base = nn.Linear(200, 200).requires_grad_(False)
    return LoraLinear(base, torch.eye(200), torch.eye(200), scale=1.0, dropout=dropout)


def test_dropout_falls_on_the_adapters_input_in_train_mode_alone() -> None:
    torch.manual_seed(0)
    layer = identity_layer(0.25)
    x = torch.rand(8, 200) + 1
    layer.eval()
    torch.testing.assert_close(layer(x) - layer.base(x), x, rtol=1e-5, atol=1e-5)
    layer.train()
    update = layer(x) - layer.base(x)
    kept = update.abs() > 0.5
    torch.testing.assert_close(update[kept], x[kept] / 0.75, rtol=1e-5, atol=1e-5)
    assert bool((update[~kept].abs() < 1e-5).all())
    assert abs(float(kept.float().mean()) - 0.75) < 0.05


def test_dropout_zero_draws_no_random_numbers() -> None:
    layer = identity_layer(0.0).train()
    x = torch.rand(2, 200)
    before = torch.get_rng_state()
    layer(x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_the_product_of_b_and_a_is_never_formed(kind: str) -> None:
    d_in, d_out, rank, tokens = 96, 80, 2, 5
    base = nn.Linear(d_in, d_out) if kind == "linear" else Conv1D(d_out, d_in)
    base.requires_grad_(False)
    A, B = torch.randn(rank, d_in), torch.randn(d_out, rank)
    layer = BASES[kind][0](base, A, B, scale=1.0)
    x = torch.randn(tokens, d_in, requires_grad=True)
    # torch counts this product out of place alone
    in_place = {torch.ops.aten.addmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * b[1]}
    forward, whole = (FlopCounterMode(display=False, custom_mapping=in_place) for _ in range(2))
    with whole:
        with forward:
            y = layer(x)
        y.sum().backward()
    frozen = 2 * tokens * d_in * d_out
    update = 2 * tokens * rank * (d_in + d_out)
    assert forward.get_total_flops() == frozen + update
    # Backward: the base gives the gradient of its input, the adapter those of input and weights.
    assert whole.get_total_flops() == 2 * frozen + 3 * update


def test_models_find_weight_and_bias_of_an_adapted_layer() -> None:
    layer = make("linear")
    assert layer.weight is layer.base.weight and layer.bias is layer.base.bias
    assert make("linear-no-bias").bias is None and make("embedding").bias is None
