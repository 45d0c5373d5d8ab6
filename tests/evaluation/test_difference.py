"""Figures between two models: divergence as torch computes it, and errors against true updates."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loractl.evaluation.difference import ROWS, error_to_update, logit_difference
from loractl.lora.dora import DoraLinear
from loractl.lora.layer import LoraLinear
from loractl.ops.packed import Packed
from loractl.quant import nf4
from loractl.quant.linear import PackedLinear


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    reference = torch.randn(ROWS + 7, 50) * 3
    return reference, reference + torch.randn(ROWS + 7, 50)


def test_the_divergence_is_that_of_torch_with_the_reference_as_the_true_distribution(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    reference, other = pair
    found = logit_difference(reference, other)
    p, q = (logits.log_softmax(-1) for logits in pair)
    expected = F.kl_div(q, p, reduction="batchmean", log_target=True)
    assert found.kl == pytest.approx(float(expected), rel=1e-5)
    assert found.largest == pytest.approx(float((reference - other).abs().max()))
    same = (reference.argmax(-1) == other.argmax(-1)).float().mean()
    assert 0 < found.top1 < 1 and found.top1 == pytest.approx(float(same))
    assert logit_difference(other, reference).kl != pytest.approx(found.kl, rel=1e-2)


def test_a_model_does_not_differ_from_itself(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = logit_difference(pair[0], pair[0])
    assert (found.largest, found.kl, found.top1) == (0.0, 0.0, 1.0)


def packed(W: torch.Tensor) -> Packed:
    return nf4.pack(W, double=False)


@pytest.mark.parametrize("formula", [LoraLinear, DoraLinear])
def test_the_ratio_is_that_of_the_error_to_the_true_change_of_the_weight(
    formula: type[LoraLinear],
) -> None:
    torch.manual_seed(1)
    W, A, B = torch.randn(48, 64), torch.randn(2, 64), torch.randn(48, 2)
    layer = formula(PackedLinear(packed(W)), A, B, scale=0.5)
    if isinstance(layer, DoraLinear):
        layer.m.data *= 1.3
    error = (W - packed(W).dense()).norm()
    assert error_to_update(layer, W) == pytest.approx(float(error / layer.delta().norm()), rel=1e-5)


def test_without_an_error_or_an_update_there_is_no_ratio() -> None:
    W, A, B = torch.randn(48, 64), torch.randn(2, 64), torch.randn(48, 2)
    plain = nn.Linear(64, 48)
    plain.weight.data = W.clone()
    assert error_to_update(LoraLinear(plain, A, B, scale=1.0), W) is None
    still = LoraLinear(PackedLinear(packed(W)), A, torch.zeros_like(B), scale=1.0)
    assert error_to_update(still, W) is None
