"""Weights in 4 and 8 bits: the C files unpack what the plain formula says, bit for bit, and a
product with a packed weight is the product with its numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loractl.ops import gemm, native, packed
from loractl.ops.gemm import Term, products
from loractl.ops.packed import NF4, Nested, Packed
from tests.ops.conftest import let_serve, ways

BOTH = [torch.float32, torch.bfloat16]
KINDS = ["nf4", "nf4-double", "int8"]
EDGES = [1, 3, 5, 8, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 70, 128, 200]


def drawn(kind: str, d_out: int, d_in: int, dtype: torch.dtype, seed: int = 0) -> Packed:
    """Codes and scales at random."""
    source = torch.Generator().manual_seed(seed)
    if kind == "int8":
        codes = torch.randint(-127, 128, (d_out, d_in), dtype=torch.int8, generator=source)
        return Packed(codes, torch.rand(d_out, generator=source), 8, d_out, d_in, dtype)
    n = d_out * d_in
    codes = torch.randint(0, 256, ((n + 1) // 2,), dtype=torch.uint8, generator=source)
    blocks = -(-n // packed.BLOCK)
    scales: Tensor | Nested = torch.rand(blocks, generator=source)
    if kind == "nf4-double":
        scales = Nested(
            torch.randint(0, 256, (blocks,), dtype=torch.uint8, generator=source),
            torch.rand(-(-blocks // packed.NESTED_BLOCK), generator=source),
            torch.randn(256, generator=source),
            0.37,
        )
    return Packed(codes, scales, 4, d_out, d_in, dtype)


def by_hand(one: Packed) -> Tensor:
    """Each number from its code and its scale, one after the other."""
    found = []
    for i in range(one.numel()):
        if one.bits == 8:
            row, column = divmod(i, one.d_in)
            assert isinstance(one.scales, Tensor)
            value = one.codes[row, column].float() * one.scales[row] * packed.INT8_STEP
        else:
            byte, block = int(one.codes[i // 2]), i // packed.BLOCK
            code = torch.tensor(NF4[byte & 15 if i % 2 else byte >> 4])
            if isinstance(one.scales, Nested):
                of = one.scales
                outer = of.scales[block // packed.NESTED_BLOCK]
                scale = of.table[int(of.codes[block])] * outer + of.offset
            else:
                scale = one.scales[block]
            value = code * scale
        found.append(value.to(one.dtype))
    return torch.stack(found).view(one.d_out, one.d_in)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_is_its_code_times_its_scale_rounded_once(kind: str, dtype: torch.dtype) -> None:
    one = drawn(kind, 5, 131, dtype)
    assert torch.equal(one._plain_rows(0, 5), by_hand(one))
    assert torch.equal(one._plain_rows(2, 4), by_hand(one)[2:4])


@pytest.mark.native
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("kind", KINDS)
@given(d_out=st.sampled_from(EDGES), d_in=st.sampled_from(EDGES), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_c_unpacks_the_same_bits(
    kind: str, dtype: torch.dtype, d_out: int, d_in: int, seed: int
) -> None:
    one = drawn(kind, d_out, d_in, dtype, seed)
    assert torch.equal(one.dense(), one._plain_rows(0, d_out))
    start = seed % d_out
    assert torch.equal(one.rows(start, d_out), one._plain_rows(start, d_out))
    assert torch.equal(one.T.dense(), one.dense().T)


@pytest.mark.native
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turned", [True, False], ids=["forward", "backward"])
@given(
    m=st.sampled_from([1, 4, 7, 8, 9, 33]),
    d_out=st.sampled_from([*EDGES, 577, 801, 1700]),
    d_in=st.sampled_from([*EDGES, 577, 801, 1700]),
    scale=st.sampled_from([1.0, 0.5]),
)
@settings(max_examples=30, deadline=None)
def test_gemm_c_multiplies_packed_weights_like_their_numbers(
    kind: str, dtype: torch.dtype, turned: bool, m: int, d_out: int, d_in: int,
    scale: float,
) -> None:  # fmt: skip
    """Bit for bit: the panels hold the same numbers."""
    one = drawn(kind, d_out, d_in, dtype)
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


@pytest.fixture(params=ways("gemm.c"))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    let_serve(request.param == "gemm.c", monkeypatch)
    monkeypatch.setattr(gemm, "SMALL", 0)
    monkeypatch.setattr(gemm, "FEW_ROWS", 0)
    monkeypatch.setattr(packed, "STRIP", 1000)  # several strips
    return str(request.param)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turned", [True, False], ids=["forward", "backward"])
@pytest.mark.parametrize("start", ["none", "row", "matrix", "out"])
def test_products_are_those_of_the_numbers_on_each_way(
    way: str, kind: str, turned: bool, start: str
) -> None:
    one = drawn(kind, 96, 130, torch.float32)
    w = one.T if turned else one
    x, t = torch.randn(6, len(w)), torch.randn(6, 3)
    thin = torch.randn(3, w.shape[1])
    begin = {"none": None, "row": torch.randn(w.shape[1])}.get(start, torch.randn(6, w.shape[1]))
    expected = x.double() @ w.dense().double() + 0.5 * t.double() @ thin.double()
    expected += 0.0 if begin is None else begin.double()
    terms = [Term(x, w), Term(t, thin, 0.5)]
    kept = None if begin is None else begin.clone()
    y = products(terms, start=begin, out=begin if start == "out" else None)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-5)
    assert start == "out" or begin is None or torch.equal(begin, kept)
    reverse = products(terms[::-1], start=kept)  # the packed weight second
    torch.testing.assert_close(reverse.double(), expected, atol=1e-4, rtol=1e-5)


def test_products_of_strips_in_bfloat16_are_rounded_about_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_serve(False, monkeypatch)
    monkeypatch.setattr(packed, "STRIP", 64)
    one = drawn("nf4", 400, 64, torch.bfloat16)
    x = torch.randn(9, 400, dtype=torch.bfloat16)
    exact = x.double() @ one.dense().double()
    strips = (products([Term(x, one)]).double() - exact).abs().mean()
    whole = ((x @ one.dense()).double() - exact).abs().mean()
    assert strips < 2 * whole
