"""Thin products against float64, by thin.c and by torch; no thread changes a number."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loractl.ops import native, thin
from tests.ops.conftest import let_serve

ROWS = [1, 2, 3, 4, 47, 48, 49, 143, 145, 300]  # 48 are a block, 144 a piece
WIDTHS = [1, 7, 8, 9, 24, 25, 70, 1550]
BOTH = [torch.float32, torch.bfloat16]
RANKS = st.one_of(st.integers(1, 9), st.sampled_from([16, 23, 61, 62, 63, 64]))


def close(y: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> bool:
    """y is scale * a b within the bound of any order of summing: u * (number of sums) * sum of the
    magnitudes; where it is bfloat16, rounded once."""
    a, b = scale * a.double(), b.double()
    bound = (a.shape[1] + 2) * 2**-24 * (a.abs() @ b.abs())
    if y.dtype == torch.bfloat16:
        bound += 2**-8 * (a @ b).abs()
    return bool(((y - a @ b).abs() <= bound).all())


def part(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of a wider tensor, so that rows do not follow upon each other."""
    return torch.randn(rows, columns + 3, dtype=dtype)[:, 1 : columns + 1]


@pytest.mark.native
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_products_of_any_shape_are_those_of_float64(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(BOTH))
    found = native.compiled(dtype)
    assert found is not None
    n, d, r = data.draw(st.sampled_from(ROWS)), data.draw(st.sampled_from(WIDTHS)), data.draw(RANKS)
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x, A, t = part(n, d, dtype), part(r, d, dtype), part(n, r, dtype)
    wide, y = torch.full((n, r + 2), 7.0, dtype=dtype), torch.full((r, d), torch.nan)
    u = wide[:, :r]
    thin.call_thin(found, x, r, A=A, u=u, t=t, y=y, scale=-1.5)
    assert close(u, x, A.T, -1.5)
    assert (wide[:, r:] == 7.0).all(), "wrote beside the columns"
    assert close(y, t.T, x)
    alone_u, alone_y = torch.empty(n, r, dtype=dtype), torch.empty(r, d)
    thin.call_thin(found, x, r, A=A, u=alone_u, scale=-1.5)
    thin.call_thin(found, x, r, t=t, y=alone_y)
    assert torch.equal(alone_u, u) and torch.equal(alone_y, y)


@pytest.mark.parametrize("serves", [True, False], ids=["thin.c", "torch"])
@pytest.mark.parametrize("rank", [1, 8, 32, 33, 64, 65])
def test_each_product_and_both_in_one_pass(
    by_c: None, monkeypatch: pytest.MonkeyPatch, serves: bool, rank: int
) -> None:
    let_serve(serves, monkeypatch)
    x, A, t = part(400, 401), part(rank, 401), part(400, rank)
    u = torch.zeros(400, rank + 4)
    assert close(thin.across(x, A), x, A.T)
    assert close(thin.down(x, t), t.T, x)
    assert close(thin.both(x, A, t, u=u[:, 2:-2], scale=0.25), t.T, x)
    assert close(u[:, 2:-2], x, A.T, 0.25)
    assert not u[:, :2].any() and not u[:, -2:].any()


def test_rows_beyond_those_of_the_most_pieces(by_c: None) -> None:
    x, t = torch.randn(9500, 30), torch.randn(9500, 4)
    assert close(thin.down(x, t), t.T, x)


@pytest.mark.parametrize("dtype", BOTH)
def test_numbers_do_not_depend_on_threads_nor_rows_on_each_other(
    by_c: None, dtype: torch.dtype
) -> None:
    x, A, t = (torch.randn(*size).to(dtype) for size in ((1000, 600), (11, 600), (1000, 11)))
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            u = torch.empty(1000, 11, dtype=dtype)
            found.append((thin.both(x, A, t, u=u, scale=1.0), u))
    finally:
        torch.set_num_threads(before)
    for y, u in found[1:]:
        assert torch.equal(y, found[0][0]) and torch.equal(u, found[0][1])
    assert torch.equal(thin.across(x[7:500], A), found[0][1][7:500])


@pytest.mark.parametrize("dtype", BOTH)
def test_nan_and_infinity_come_through_and_stay_in_their_row_and_column(
    by_c: None, dtype: torch.dtype
) -> None:
    x, A, t = (torch.ones(*size, dtype=dtype) for size in ((300, 500), (8, 500), (300, 8)))
    x[2, 77], x[5, 499] = torch.nan, torch.inf
    u = torch.empty(300, 8, dtype=dtype)
    y = thin.both(x, A, t, u=u, scale=1.0)
    assert u[2].isnan().all() and u[5].isposinf().all()
    assert y[:, 77].isnan().all() and y[:, 499].isposinf().all()
    assert (u[6:] == 500).all() and (y[:, 78:499] == 300).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.half(),
        lambda x: x.double(),
        lambda x: x.T.contiguous().T,  # numbers of a row lie apart
        lambda x: x[:3],
    ],
)
def test_what_thin_c_does_not_take_goes_to_torch(
    by_c: None, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    assert callable(change)
    x = change(torch.randn(500, 600))
    A, t = torch.randn(8, 600, dtype=x.dtype), torch.randn(len(x), 8, dtype=x.dtype)
    u = torch.empty(len(x), 8, dtype=x.dtype)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("thin.c was called")

    monkeypatch.setattr(thin, "call_thin", refuse)
    assert torch.equal(thin.across(x, A), x @ A.T)
    assert torch.equal(thin.down(x, t), t.T @ x)
    assert torch.equal(thin.both(x, A, t, u=u, scale=2.0), t.T @ x)
    assert torch.equal(u, (x @ A.T) * 2.0)
    with pytest.raises(AssertionError, match=r"thin\.c was called"):
        thin.across(torch.randn(500, 600), torch.randn(8, 600))
