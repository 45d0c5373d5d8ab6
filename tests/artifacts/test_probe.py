"""The arithmetic of proofs, against torch's own rounding and logits that are known to be wrong."""

from pathlib import Path

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from loractl.artifacts import probe
from loractl.errors import ArtifactError
from loractl.lora.inject import FORMULAS
from loractl.lora.layer import LoraLayer

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_a_step_is_what_rounding_once_makes_at_most_and_nearly_reaches(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    of_all_sizes = 10.0 ** torch.arange(-7, 3).repeat(2000)
    exact = torch.randn(20_000, generator=generator, dtype=torch.float64) * of_all_sizes
    if dtype != torch.float32:
        exact = exact.float().double()  # torch rounds to half precision by way of float32
    error = (exact.to(dtype).double() - exact).abs()
    half = probe.half_step(exact, dtype)
    assert bool((error <= half).all())
    assert float((error / half).max()) > 0.99
    assert probe.is_within(exact.to(dtype), exact, half)
    wrong = exact.clone()
    wrong[7] += 1.1 * half[7] + 2 * probe.FP32_NOISE * exact.abs().max()
    assert not probe.is_within(wrong, exact, half)


def test_logits_agree_up_to_noise_and_rounding_and_never_where_one_is_no_number() -> None:
    expected = torch.tensor([[[1.0, -8.0], [3.0, 2.0]]])  # (rows, length, vocabulary)
    noise = 8 * probe.FP32_TOLERANCE
    near = probe.compare_logits(expected + 0.9 * noise, expected, rounding=0.0)
    assert near.holds and near.bound == pytest.approx(noise) and near.largest_logit == 8
    assert not probe.compare_logits(expected + 1.1 * noise, expected, rounding=0.0).holds
    wide = probe.compare_logits(expected + 0.1, expected, rounding=0.03)
    assert wide.holds and wide.bound == pytest.approx(noise + probe.ROUNDING_FACTOR * 0.03)
    assert wide.drowns(0.15) and not wide.drowns(0.25)
    other = probe.compare_logits(expected.flip(-1), expected, rounding=9.0)
    assert other.holds and other.top1_agreement == 0
    for bad in (float("nan"), float("inf")):
        spoilt = expected.clone()
        spoilt[0, 1, 0] = bad
        found = probe.compare_logits(spoilt, expected, rounding=1e9)
        assert not found.holds and found.difference == float("inf")


def test_errors_of_rounding_have_its_sizes_and_signs_of_both_kinds() -> None:
    class Summing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = torch.nn.Parameter(torch.randn(40, 9))
            self.before = self.W.detach().clone()

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> "Summing":
            assert not use_cache
            self.logits = self.W[input_ids]
            return self

    model, ids = Summing(), torch.arange(40).view(4, 10)
    expected = probe.probe_logits(model, ids)
    found = probe.rounding_effect(model, ids, expected, [model.W], lambda W: W.bfloat16().float())
    error, moved = model.before.bfloat16().float() - model.before, model.W - model.before
    assert torch.allclose(moved.abs(), error.abs(), atol=1e-6)
    assert found == pytest.approx(float(error.abs().max()), abs=1e-6)
    same = float((moved.sign() == error.sign()).float().mean())
    assert 0.4 < same < 0.6


@pytest.mark.parametrize("formula", ["lora", "dora", "adalora"])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding"])
def test_columns_are_those_of_the_merged_weight(kind: str, formula: str) -> None:
    """By another road: the formula of the merge, in float64."""
    torch.manual_seed(0)
    d_in, d_out = 50, 30
    base: torch.nn.Module = torch.nn.Linear(d_in, d_out)
    if kind != "linear":
        base = Conv1D(d_out, d_in) if kind == "conv1d" else torch.nn.Embedding(d_in, d_out)
    if kind != "embedding":
        torch.nn.init.normal_(base.bias, std=100.0)  # type: ignore[arg-type]
    layer = FORMULAS[formula][kind](base, torch.randn(4, d_in), torch.randn(d_out, 4), scale=1.5)
    for _, parameter in layer.named_parameters():
        parameter.data.mul_(1.1)
    found = probe.columns_of(layer)
    assert found.dtype == torch.float64 and found.shape == (probe.COLUMNS, d_out)
    torch.testing.assert_close(found, merged_columns(layer), rtol=1e-9, atol=1e-12)
    if formula != "adalora":  # has no start, from which others count their update
        layer.count_from_(torch.randn(4, d_in), torch.randn(d_out, 4))
        found, merged = probe.columns_of(layer), merged_columns(layer)
        assert probe.is_within(merged, found, torch.zeros(()))


def merged_columns(layer: LoraLayer) -> torch.Tensor:
    merged = torch.cat([rows for _, _, rows in layer.merged_rows(layer.dense_weight())])
    return probe.plain_columns(layer.kind, merged).detach()


def test_an_adapter_without_effect_is_refused() -> None:
    logits = torch.ones(1, 1, 2)
    assert probe.effect_of(logits, logits + 2, Path("a")) == 2
    with pytest.raises(ArtifactError, match="a: the adapter changes nothing"):
        probe.effect_of(logits, logits, Path("a"))
