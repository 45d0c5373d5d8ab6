"""Zeros whose pages do not exist before they are written to."""

import resource
import sys

import pytest
import torch

from loractl.ops.untouched import untouched_zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_zeros_that_can_be_written(dtype: torch.dtype) -> None:
    found = untouched_zeros((300, 7), dtype)
    assert found.dtype == dtype and torch.equal(found, torch.zeros(300, 7, dtype=dtype))
    found[299] = 1.5
    assert float(found.sum()) == 7 * 1.5
    assert untouched_zeros((0, 3)).shape == (0, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="sizes are in KiB there")
def test_rows_far_from_each_other_take_a_page_each() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = untouched_zeros((1 << 16, 1024))  # 256 MiB
    table[:: 1 << 9] = 1.0  # 128 rows of a page
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10
