"""Blocks of GGUF files: torch and the C files unpack what gguf-py unpacks, bit for bit."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loractl.ops import gemm, native
from loractl.ops.gemm import Term
from loractl.ops.ggml_blocks import TYPES, BlockType
from loractl.ops.packed import Packed, description

BOTH = [torch.float32, torch.bfloat16]
KINDS = {kind.name: kind for kind in TYPES.values()}
HALVES = {"q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,), "q4_1": (0, 2), "q5_1": (0, 2),
          "q4_k": (0, 2), "q5_k": (0, 2)}  # fmt: skip
"""Where the float16 numbers of a block are, if not only at its beginning."""
SPECIAL = [0.0, -0.0, 2.0**-24, -(2.0**-15), 6.1e-5, 1.0, 65504.0, torch.inf, -torch.inf, torch.nan]


def drawn(kind: BlockType, d_out: int, n_blocks: int, dtype: torch.dtype, seed: int = 0) -> Packed:
    """Rows of blocks at random, their float16 scales finite and some of them subnormal."""
    source = torch.Generator().manual_seed(seed)
    blocks = torch.randint(
        0, 256, (d_out, n_blocks, kind.size), dtype=torch.uint8, generator=source
    )
    for at in HALVES.get(kind.name, (0,)):
        power = torch.randint(-24, 3, (d_out, n_blocks, 1), generator=source)
        scales = (torch.randn(d_out, n_blocks, 1, generator=source) * 2.0**power).half()
        blocks[:, :, at : at + 2] = scales.view(torch.uint8)
    return Packed.of_blocks(blocks.flatten(1), kind, dtype)


def by_gguf(one: Packed) -> Tensor:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    assert one.blocks is not None
    kind = GGMLQuantizationType(one.blocks.number)
    with np.errstate(all="ignore"):  # scales that are no numbers
        return torch.from_numpy(quants.dequantize(one.codes.numpy(), kind)).to(one.dtype)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_type_is_the_one_that_gguf_knows_by_its_number(kind: BlockType) -> None:
    gguf = pytest.importorskip("gguf")
    theirs = gguf.GGMLQuantizationType(kind.number)
    assert theirs.name.lower() == kind.name
    assert gguf.GGML_QUANT_SIZES[theirs] == (kind.values, kind.size)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_torch_unpacks_the_bits_of_gguf(kind: BlockType, dtype: torch.dtype) -> None:
    one = drawn(kind, 5, 3, dtype)
    expected = by_gguf(one)
    assert torch.equal(one._plain_rows(0, 5), expected)
    assert torch.equal(one._plain_rows(2, 4), expected[2:4])
    assert one.shape == expected.shape and one.numel() == expected.numel()


@pytest.mark.native
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(
    d_out=st.sampled_from([1, 3, 9]),
    n_blocks=st.sampled_from([1, 2, 5]),
    start=st.integers(0, 2000),
    count=st.integers(0, 600),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_c_unpacks_the_same_bits_from_any_number_on(
    kind: BlockType, dtype: torch.dtype, d_out: int, n_blocks: int, start: int, count: int,
    seed: int,
) -> None:  # fmt: skip
    one = drawn(kind, d_out, n_blocks, dtype, seed)
    expected = one._plain_rows(0, d_out).flatten()
    assert torch.equal(one.dense().flatten(), expected)
    library = native.compiled(dtype)
    assert library is not None
    start = min(start, one.numel())
    count = min(count, one.numel() - start)
    found, given_ = torch.full((count + 1,), 7.0, dtype=dtype), description(one)
    library.unpack(ctypes.addressof(given_), start, count, found.data_ptr(), 1)
    assert torch.equal(found[:-1], expected[start : start + count])
    assert found[-1] == 7.0, "nothing is written behind the last number"


@pytest.mark.native
@pytest.mark.parametrize("dtype", BOTH)
def test_every_float16_is_read_as_torch_reads_it(dtype: torch.dtype) -> None:
    """As the lower bound of a block whose codes are 0."""
    kind = KINDS["q4_1"]
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.uint8)
    blocks = torch.zeros(1 << 16, kind.size, dtype=torch.uint8)
    blocks[:, 2:4] = halves.view(-1, 2)
    one = Packed.of_blocks(blocks, kind, dtype)
    expected = halves.view(torch.float16).float()[:, None].expand(-1, 32) + 0.0
    torch.testing.assert_close(one.dense(), expected.to(dtype), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(one.dense(), by_gguf(one), rtol=0, atol=0, equal_nan=True)


@pytest.mark.native
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_scales_that_are_no_numbers_leave_none(kind: BlockType, dtype: torch.dtype) -> None:
    one = drawn(kind, len(SPECIAL), 1, dtype)
    for at in HALVES.get(kind.name, (0,)):
        one.codes[:, at : at + 2] = torch.tensor(SPECIAL).half().view(torch.uint8).view(-1, 2)
    expected = by_gguf(one)
    for found in (one.dense(), one._plain_rows(0, len(SPECIAL))):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.native
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("turned", [True, False], ids=["forward", "backward"])
@given(
    m=st.sampled_from([1, 4, 7, 33]),
    d_out=st.sampled_from([1, 3, 24, 47, 577, 801]),
    n_blocks=st.sampled_from([1, 2, 5]),
    scale=st.sampled_from([1.0, 0.5]),
)
@settings(max_examples=10, deadline=None)
def test_gemm_c_multiplies_blocks_like_their_numbers(
    kind: BlockType, dtype: torch.dtype, turned: bool, m: int, d_out: int, n_blocks: int,
    scale: float,
) -> None:  # fmt: skip
    """Bit for bit: the panels hold the same numbers."""
    one = drawn(kind, d_out, n_blocks, dtype)
    w, dense = (one.T, one.dense().T) if turned else (one, one.dense())
    other = Term(torch.randn(m, 5, dtype=dtype), torch.randn(5, w.shape[1], dtype=dtype), 2.0)
    x = torch.randn(m, len(w), dtype=dtype)
    library = native.compiled(dtype)
    assert library is not None
    found = []
    for weight in (w, dense):
        y = torch.empty(m, w.shape[1], dtype=dtype)
        gemm.call_products(library, y, None, [Term(x, weight, scale), other])
        found.append(y)
    assert torch.equal(*found)
