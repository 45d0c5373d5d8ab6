"""Sizes come from what a layer says of itself, and its matrix from its own `dense_weight`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractl.lora import algebra, inject
from loractl.lora.dense import MatrixSize, dense_weight_of, size_of
from loractl.lora.ranks import ModuleRank

D_IN, D_OUT = 12, 8


class Packed(nn.Linear):
    """Two 4-bit codes a byte, as a quantized weight stands: another shape, another dtype."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__(D_IN, D_OUT, bias=False, device="meta")
        self.weight = nn.Parameter(codes[:, ::2] * 16 + codes[:, 1::2], requires_grad=False)

    def dense_weight(self) -> Tensor:
        codes = torch.stack([self.weight // 16, self.weight % 16], dim=-1).flatten(1)
        return codes.float() / 7.5 - 1

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dense_weight())


def models() -> tuple[nn.Sequential, nn.Sequential]:
    """One layer, packed, and the same one dense."""
    codes = torch.randint(
        0, 16, (D_OUT, D_IN), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    packed = Packed(codes)
    dense = nn.Linear(D_IN, D_OUT, bias=False)
    with torch.no_grad():
        dense.weight.copy_(packed.dense_weight())
    return nn.Sequential(packed), nn.Sequential(dense)


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


@pytest.mark.parametrize("merge", [algebra.merge_, inject.merge_])
def test_a_dense_weight_is_never_put_where_a_packed_one_is_unpacked(
    merge: Callable[[nn.Module], object],
) -> None:
    packed, _ = models()
    layer = inject.inject_(packed, {"0": ModuleRank(4, 8, 2.0)})["0"]
    before = layer.weight
    with pytest.raises(AssertionError, match="Packed is packed"):
        merge(packed)
    assert layer.weight is before and layer.enabled


def test_a_plain_weight_is_itself_and_no_copy() -> None:
    linear = nn.Linear(3, 2)
    assert dense_weight_of(linear) is linear.weight
    assert size_of(linear, "linear") == MatrixSize(3, 2)
    assert size_of(nn.Embedding(7, 5), "embedding") == MatrixSize(7, 5)
