"""Sizes come from what a layer says of itself, and its matrix from its own `dense_weight`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loractl.lora import algebra, inject
from loractl.lora.dense import MatrixSize, dense_weight_of, size_of
from loractl.lora.ranks import ModuleRank
from loractl.quant.kinds import PACKERS
from loractl.quant.linear import PackedLinear, unpacked

D_IN, D_OUT = 40, 24


def models(kind: str = "nf4") -> tuple[nn.Sequential, nn.Sequential]:
    """One layer, packed, and the same one dense."""
    W = torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(0))
    packed = PackedLinear(PACKERS[kind](W))
    return nn.Sequential(packed), nn.Sequential(unpacked(packed))


@pytest.mark.parametrize("formula", ["lora", "dora", "adalora"])
@pytest.mark.parametrize("init", ["default", "pissa", "olora"])
def test_a_packed_layer_is_adapted_as_the_dense_one(formula: str, init: str) -> None:
    results: list[tuple[Any, ...]] = []
    for model in models():
        layer = inject.inject_(model, {"0": ModuleRank(4, 8, 2.0)}, formula=formula, init=init)["0"]
        assert (layer.d_in, layer.d_out, layer.laid_shape) == (D_IN, D_OUT, (D_OUT, D_IN))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        y = model(torch.randn(3, D_IN, generator=generator))
        y.square().sum().backward()
        gradients = [one.grad for one in layer.parameters() if one.requires_grad]
        assert all(one is not None for one in gradients)
        results.append((y, *gradients, layer.delta(), layer.merged_weight()))
    for packed, dense in zip(*results, strict=True):
        torch.testing.assert_close(packed, dense, rtol=1e-5, atol=1e-6)


def test_a_packed_layer_comes_back_after_a_merge() -> None:
    packed, _ = models()
    layer = inject.inject_(packed, {"0": ModuleRank(4, 8, 2.0)})["0"]
    with torch.no_grad():
        layer.B.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(2))
    base, adapted = layer.base, packed(x)
    kept = algebra.merge_(packed)
    torch.testing.assert_close(packed(x), adapted, rtol=1e-5, atol=1e-5)
    algebra.unmerge_(packed, kept)
    assert layer.base is base and torch.equal(packed(x), adapted)
    inject.merge_(packed)
    assert type(packed[0]) is nn.Linear
    torch.testing.assert_close(packed(x), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("formula", ["lora", "dora", "adalora"])
@pytest.mark.parametrize("kind", sorted(PACKERS))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_gradients_through_a_packed_weight_are_those_through_its_numbers(
    formula: str, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    W = torch.randn(320, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed = PackedLinear(PACKERS[kind](W))
    found: list[list[Tensor]] = []
    for model in (nn.Sequential(packed), nn.Sequential(unpacked(packed))):
        layer = inject.inject_(model, {"0": ModuleRank(4, 8, 2.0)}, formula=formula)["0"]
        generator = torch.Generator().manual_seed(1)
        trained = [one for one in layer.parameters() if one.requires_grad]
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        x = torch.randn(16, 256, generator=generator).to(dtype).requires_grad_(True)
        y = model(x)
        y.backward(torch.randn(y.shape, generator=generator).to(dtype))
        gradients = [one.grad for one in (x, *trained) if one.grad is not None]
        assert len(gradients) == len(trained) + 1
        found.append(gradients)
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_a_plain_weight_is_itself_and_no_copy() -> None:
    linear = nn.Linear(3, 2)
    assert dense_weight_of(linear) is linear.weight
    assert size_of(linear, "linear") == MatrixSize(3, 2)
    assert size_of(nn.Embedding(7, 5), "embedding") == MatrixSize(7, 5)
