"""NF4 is what its paper says, and byte for byte what bitsandbytes makes of the same numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.ops.packed import NF4, Nested
from loractl.quant import nf4

SHAPES = [(24, 80), (3, 64), (7, 9), (33, 70), (600, 520), (1, 64), (1, 1)]


def random(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * 0.02).to(dtype)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes judges the bytes")


def codes_of(codes: Tensor) -> Tensor:
    return torch.stack([codes >> 4, codes & 15], dim=1).flatten()


def test_codes_are_the_nearest_of_sixteen_values_to_each_number_over_its_blocks_largest() -> None:
    W = random((24, 80))
    packed = nf4.pack(W, double=False)
    blocks = W.view(-1, 64)
    scales = blocks.abs().amax(dim=1)
    nearest = (blocks[..., None] / scales[:, None, None] - torch.tensor(NF4)).abs().argmin(dim=-1)
    assert torch.equal(codes_of(packed.codes), nearest.flatten().to(torch.uint8))
    assert torch.equal(packed.scales, scales)  # type: ignore[arg-type]
    assert len(set(NF4)) == 16


@pytest.mark.parametrize(("double", "bits"), [(False, 4.5), (True, 4.127)])
def test_a_parameter_takes_four_and_a_half_bits_or_four_and_an_eighth(
    double: bool, bits: float
) -> None:
    packed = nf4.pack(random((256, 512)), double=double)
    held = [packed.codes, packed.scales]
    if isinstance(packed.scales, Nested):  # the table is one for the matrix
        held = [packed.codes, packed.scales.codes, packed.scales.scales]
    assert sum(one.nbytes for one in held) * 8 / packed.numel() == pytest.approx(bits, abs=5e-4)  # type: ignore[union-attr]


def test_values_of_a_normal_distribution_are_off_by_nine_hundredths() -> None:
    W = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    for double in (False, True):
        error = (nf4.pack(W, double=double).dense() - W).square().mean().sqrt()
        assert error == pytest.approx(0.092, abs=5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_are_those_of_bitsandbytes(
    theirs: Any, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    W = random(shape, dtype)
    codes, state = theirs.quantize_4bit(W, blocksize=64, quant_type="nf4")
    packed = nf4.pack(W, double=False)
    assert torch.equal(packed.codes, codes.flatten())
    assert torch.equal(packed.scales, state.absmax)  # type: ignore[arg-type]
    assert torch.equal(packed.dense(), theirs.dequantize_4bit(codes, state).view(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_scales_in_eight_bits_are_those_of_bitsandbytes(
    theirs: Any, shape: tuple[int, int]
) -> None:
    W = random(shape)
    _, state = theirs.quantize_4bit(W, blocksize=64, quant_type="nf4", compress_statistics=True)
    found = nf4.pack(W, double=True).scales
    assert isinstance(found, Nested)
    assert torch.equal(found.codes, state.absmax)
    assert torch.equal(found.scales, state.state2.absmax)
    assert torch.equal(found.table, state.state2.code)
    assert found.offset == state.offset.item()


def test_a_block_of_zeros_and_a_block_below_the_normal_numbers(theirs: Any) -> None:
    W = torch.cat([torch.zeros(64), torch.full((64,), 1e-40), torch.ones(64)])[None]
    for double in (False, True):
        codes, state = theirs.quantize_4bit(W, quant_type="nf4", compress_statistics=double)
        assert torch.equal(nf4.pack(W, double=double).codes, codes.flatten())


def test_pieces_of_a_large_matrix_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    W = random((33, 70))
    whole = nf4.pack(W, double=False)
    monkeypatch.setattr(nf4, "PIECE", 256)
    pieces = nf4.pack(W, double=False)
    assert torch.equal(pieces.codes, whole.codes)
    assert torch.equal(pieces.scales, whole.scales)  # type: ignore[arg-type]


def test_a_number_that_is_not_finite_is_not_hidden() -> None:
    W = random((4, 64))
    W[1, 3], W[2, 5] = torch.nan, torch.inf
    rows = nf4.pack(W, double=False).dense().isfinite().all(dim=1)
    assert rows.tolist() == [True, False, False, True]
