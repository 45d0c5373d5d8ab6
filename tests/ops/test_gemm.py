"""Sums of products against float64, by gemm.c and by torch; a row does not depend on the others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loractl.ops import gemm, native
from loractl.ops.gemm import Term, products
from tests.ops.conftest import let_serve, ways

EDGES = [1, 3, 4, 5, 8, 9, 23, 24, 25, 47, 48, 49, 70, 112]
DEPTHS = [1, 2, 8, 24, 383, 384, 385, 577, 800, 1021, 2045]
"""Blocks are 384 or, with AVX-512, 800 deep, twice that in bfloat16; rows of 1021 and 2045 numbers
are 4,096 bytes long here."""
BOTH = [torch.float32, torch.bfloat16]


@pytest.fixture(params=ways("gemm.c"))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small products go the same way here."""
    let_serve(request.param == "gemm.c", monkeypatch)
    monkeypatch.setattr(gemm, "SMALL", 0)
    monkeypatch.setattr(gemm, "FEW_ROWS", 0)
    return str(request.param)


@pytest.fixture
def by_c(by_c: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "SMALL", 0)


def exact(terms: list[Term], start: Tensor | None) -> Tensor:
    total = sum(term.scale * term.x.double() @ term.w.double() for term in terms)
    assert isinstance(total, Tensor)
    return total if start is None else total + start.double()


def drawn_term(
    m: int, n: int, depth: int, *, across: bool, scale: float, dtype: torch.dtype
) -> Term:
    """Parts of wider tensors, so that rows do not follow upon each other."""
    x = torch.randn(m, depth + 3, dtype=dtype)[:, :depth]
    w = torch.randn(n, depth + 5, dtype=dtype)[:, :depth].T
    return Term(x, w if across else torch.randn(depth, n + 2, dtype=dtype)[:, :n], scale)


def close(y: Tensor, terms: list[Term], start: Tensor | None) -> bool:
    """Within the bound of any order of summing in float32, u * (number of sums) * sum of the
    magnitudes; in bfloat16 with one rounding of the sum, and of weights that have a scale."""
    magnitudes = [Term(term.x.abs(), term.w.abs(), abs(term.scale)) for term in terms]
    most = exact(magnitudes, None if start is None else start.abs())
    count = sum(len(term.w) for term in terms) + 2 * len(terms) + 1
    bound = count * 2**-24 * most
    if y.dtype == torch.bfloat16:
        scaled = [term for term in magnitudes if term.scale != 1.0]
        bound += 2**-8 * (exact(terms, start).abs() + (exact(scaled, None) if scaled else 0))
    return bool(((y - exact(terms, start)).abs() <= bound).all())


@pytest.mark.native
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_sums_of_any_shapes_layouts_and_starts_are_those_of_float64(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(BOTH))
    found = native.compiled(dtype)
    assert found is not None
    m, n = data.draw(st.sampled_from(EDGES)), data.draw(st.sampled_from(EDGES))
    depths = data.draw(st.lists(st.sampled_from(DEPTHS), min_size=1, max_size=4))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    terms = [
        drawn_term(
            m, n, depth, across=data.draw(st.booleans()), scale=data.draw(SCALES), dtype=dtype
        )
        for depth in depths
    ]
    start = data.draw(st.sampled_from([None, torch.randn(n), torch.randn(m, n + 1)[:, :n]]))
    start = None if start is None else start.to(dtype)
    buffer = torch.full((m, n + 2), 7.0, dtype=dtype)
    gemm.call_products(found, buffer[:, :n], start, terms)
    assert close(buffer[:, :n], terms, start)
    assert (buffer[:, n:] == 7.0).all(), "wrote beside the columns"


SCALES = st.sampled_from([1.0, 2.5, -0.5])


@pytest.mark.parametrize("m", [4, 341])
def test_a_layer_with_bias_and_adapter(way: str, m: int) -> None:
    x, W, bias = torch.randn(m, 600), torch.randn(300, 600), torch.randn(300)
    t, B = torch.randn(m, 8), torch.randn(8, 300)
    terms = [Term(x, W.T), Term(t, B, 2.0)]
    assert close(products(terms, start=bias), terms, bias)


def test_the_sum_may_stand_where_its_start_stood(way: str) -> None:
    terms = [Term(torch.randn(30, 900), torch.randn(900, 50))]
    y = torch.randn(30, 50)
    start = y.clone()
    assert products(terms, start=y, out=y) is y
    assert close(y, terms, start)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("depth", [700, 2048])  # with AVX-512 read as it lies, and in panels
def test_a_row_is_the_same_whatever_rows_and_threads_there_are(
    by_c: None, depth: int, dtype: torch.dtype
) -> None:
    x, w, t, B, start = (
        torch.randn(*shape).to(dtype)
        for shape in ((203, depth), (depth, 1600), (203, 8), (8, 1600), (203, 1600))
    )

    def some(rows: slice) -> Tensor:
        terms = [Term(x[rows], w), Term(t[rows], B, 2.5)]
        return products(terms, start=start[rows])

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = some(slice(203))
        for threads in (2, 3):
            torch.set_num_threads(threads)
            for _ in range(20):  # which of them takes which rows differs
                assert torch.equal(some(slice(203)), alone)
        torch.set_num_threads(5)  # threads share the columns too
        assert torch.equal(some(slice(40)), alone[:40])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(some(slice(7, 19)), alone[7:19])


@pytest.mark.parametrize("dtype", BOTH)
def test_nan_and_infinity_come_through_and_stay_in_their_row(
    by_c: None, dtype: torch.dtype
) -> None:
    x, w = torch.ones(9, 500, dtype=dtype), torch.ones(500, 30, dtype=dtype)
    x[2, 77], x[5, 3] = torch.nan, torch.inf
    y = products([Term(x, w)])
    assert y[2].isnan().all() and y[5].isposinf().all()
    assert (y[[0, 1, 3, 4, 6, 7, 8]] == 500.0).all()


def test_a_sum_of_many_blocks_is_rounded_once(by_c: None) -> None:
    """A term that rounding to bfloat16 between blocks would lose, block after block."""
    x, w = torch.zeros(8, 49_152).bfloat16(), torch.ones(49_152, 64).bfloat16()
    x[:, 0], x[:, 1600::1600] = 256.0, 0.5  # neighbours of 256 are 2 apart
    y = products([Term(x, w)])
    assert (y == 272.0).all()  # 271 lies between two, and goes to the even one


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w: (x.half(), w.half()),
        lambda x, w: (x.double(), w.double()),
        lambda x, w: (x.T.contiguous().T, w),  # numbers of a row lie apart
        lambda x, w: (x, w.repeat_interleave(2, 1)[:, ::2].T.repeat_interleave(2, 1)[:, ::2].T),
        lambda x, w: (x[:3], w),
    ],
)
def test_what_gemm_c_does_not_take_goes_to_torch(
    by_c: None, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    assert callable(change)
    x, w = change(torch.randn(20, 64), torch.randn(64, 48))

    def refuse(*_: object) -> None:
        raise AssertionError("gemm.c was called")

    monkeypatch.setattr(gemm, "call_products", refuse)
    assert torch.equal(products([Term(x, w)]), torch.mm(x, w))
    with pytest.raises(AssertionError, match=r"gemm\.c was called"):
        products([Term(torch.randn(20, 64), torch.randn(64, 48))])


@pytest.mark.parametrize(
    ("said", "float32", "bfloat16"),
    [
        ("x86_64 vendor_id : AuthenticAMD flags : fpu avx2 fma ", True, True),
        ("x86_64 vendor_id : AuthenticAMD flags : fpu avx2 fma avx512f avx512_bf16 ", True, True),
        ("x86_64 vendor_id : AuthenticAMD flags : fpu avx ", False, False),
        ("x86_64 vendor_id : GenuineIntel flags : fpu avx ", False, False),
        ("x86_64 vendor_id : GenuineIntel flags : fpu avx2 fma ", False, True),
        ("x86_64 vendor_id : GenuineIntel flags : fpu avx2 fma avx512f ", True, True),
        ("x86_64 vendor_id : GenuineIntel flags : avx2 fma avx512f avx512_bf16 ", True, False),
        ("x86_64 vendor_id : GenuineIntel flags : avx2 fma avx512f amx_bf16 ", True, False),
        ("aarch64 CPU implementer : 0x41 Features : fp asimd bf16 ", False, False),
    ],
)
def test_it_serves_on_the_processors_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, said: str, float32: bool, bfloat16: bool
) -> None:
    monkeypatch.setattr(native, "processor", lambda: said)
    gemm.serves_here.cache_clear()
    try:
        assert gemm.serves_here(torch.float32) is float32
        assert gemm.serves_here(torch.bfloat16) is bfloat16
        assert not gemm.serves_here(torch.float16)
    finally:
        gemm.serves_here.cache_clear()
