"""Tensors with and without a number that is not finite, as `torch.isfinite` judges them."""

import pytest
import torch

from loractl.ops.finite import all_finite

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(), (7,), (40, 1000)])
def test_the_extremes_tell_what_isfinite_tells_of_each_value(
    shape: tuple[int, ...], bad: float | None, dtype: torch.dtype
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for at in {0, values.numel() // 2, values.numel() - 1}:
        tensor = values.clone()
        if bad is not None:
            tensor.view(-1)[at] = bad
        tensor = tensor.to(dtype)
        assert all_finite(tensor) == bool(torch.isfinite(tensor.float()).all()) == (bad is None)


def test_nothing_is_finite() -> None:
    assert all_finite(torch.empty(0, 3))
