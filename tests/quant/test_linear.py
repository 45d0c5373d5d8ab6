"""A packed layer computes what the dense layer around the same numbers computes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from loractl.ops.packed import Nested
from loractl.quant.kinds import PACKERS, Quantization, kind_of
from loractl.quant.linear import PackedLinear, moved, unpacked

KINDS = sorted(PACKERS)


def pair(
    kind: str, dtype: torch.dtype = torch.float32, d_out: int = 300, d_in: int = 320
) -> tuple[PackedLinear, nn.Linear]:
    generator = torch.Generator().manual_seed(1)
    W = (torch.randn(d_out, d_in, generator=generator) * 0.1).to(dtype)
    bias = nn.Parameter(torch.randn(d_out, generator=generator).to(dtype), requires_grad=False)
    layer = PackedLinear(PACKERS[kind](W), bias)
    return layer, unpacked(layer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(2, 5), (1,), (40,)])
def test_output_and_gradient_of_the_input_are_those_of_the_dense_layer(
    kind: str, dtype: torch.dtype, rows: tuple[int, ...]
) -> None:
    packed, dense = pair(kind, dtype)
    generator = torch.Generator().manual_seed(2)
    found: list[tuple[Tensor, Tensor]] = []
    for layer in (packed, dense):
        x = torch.randn(*rows, 320, generator=generator.manual_seed(2)).to(dtype)
        x.requires_grad_(True)
        y = layer(x)
        y.backward(torch.ones_like(y) / 3)
        assert x.grad is not None
        found.append((y.detach(), x.grad))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_it_has_nothing_to_train_but_a_bias_and_nothing_that_a_dtype_changes() -> None:
    layer, _ = pair("nf4-double")
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert list(layer.state_dict()) == ["bias"]
    before = layer.packed
    layer.to(torch.bfloat16)
    assert layer.packed is before
    assert isinstance(before.scales, Nested) and before.scales.scales.dtype == torch.float32
    assert torch.equal(copy.deepcopy(layer).dense_weight(), layer.dense_weight())


@pytest.mark.parametrize("kind", KINDS)
def test_it_moves_between_devices_whole(kind: str) -> None:
    layer, _ = pair(kind)
    there = moved(layer.packed, torch.device("meta"))
    parts = [there.codes, there.scales]
    if isinstance(there.scales, Nested):
        parts = [there.codes, there.scales.codes, there.scales.scales, there.scales.table]
    assert all(one.device.type == "meta" for one in parts)  # type: ignore[union-attr]
    assert moved(layer.packed, torch.device("cpu")) is layer.packed


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_known_from_what_it_packs_and_recorded(kind: str) -> None:
    layer, _ = pair(kind)
    assert kind_of(layer.packed) == kind
    chosen = Quantization(kind, "bfloat16", head=True)
    assert Quantization.recorded(chosen.about(), "bfloat16") == chosen
    assert Quantization.recorded(None, "bfloat16") is None


def test_packing_starts_from_the_dtype_of_the_run() -> None:
    W = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    rounded = Quantization("nf4", "bfloat16").rounded(W)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, PACKERS["nf4"](W.bfloat16()).dense())
