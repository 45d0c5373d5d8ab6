"""int8 is row-wise absmax, byte for byte as bitsandbytes stores it."""

from typing import Any

import pytest
import torch

from loractl.quant import int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_and_scales_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    nn: Any = pytest.importorskip("bitsandbytes.nn", reason="bitsandbytes judges the bytes")
    functional: Any = pytest.importorskip("bitsandbytes.functional")
    W = (torch.randn(40, 24, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    theirs = nn.Int8Params(W, requires_grad=False).to("cpu")
    packed = int8.pack(W)
    assert torch.equal(packed.codes, theirs.data)
    assert torch.equal(packed.scales, theirs.SCB)  # type: ignore[arg-type]
    dense = functional.int8_vectorwise_dequant(theirs.data, theirs.SCB).to(dtype)
    assert torch.equal(packed.dense(), dense)


def test_no_number_is_off_by_more_than_half_a_step_of_its_row() -> None:
    W = torch.randn(40, 24, generator=torch.Generator().manual_seed(0)).half().float()
    step = W.abs().amax(dim=1, keepdim=True) / 127
    assert ((int8.pack(W).dense() - W).abs() <= step * 0.501).all()


def test_strips_of_a_large_matrix_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    whole = int8.pack(W)
    monkeypatch.setattr(int8, "STRIP", 24 * 7)
    strips = int8.pack(W)
    assert torch.equal(strips.codes, whole.codes)
    assert torch.equal(strips.scales, whole.scales)  # type: ignore[arg-type]
