"""Which values fall: how many, where, and that every way to compute it agrees."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from loractl.ops import native
from loractl.ops.dropout import Mask, add_dropped_, draw, dropped, fallen

CPU = torch.device("cpu")
SEEDS = [0, 1, 2**31 + 5, 2**32, 2**63 - 2]
SHAPES = [(1, 1), (3, 37), (70, 576), (5, 2049)]


def without_library(run: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(native, "compiled", lambda dtype: None)
        return run()


@pytest.mark.native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_and_the_formula_give_the_same_bits(
    dtype: torch.dtype, seed: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native.compiled(dtype) is not None
    mask, x = Mask(0.3, seed), torch.randn(shape).to(dtype)
    wider = torch.randn(shape[0], shape[1] + 5).to(dtype)
    for given in (x, wider[:, 2:-3]):
        found = dropped(given, mask)
        assert torch.equal(found, without_library(lambda x=given: dropped(x, mask), monkeypatch))  # type: ignore[misc]
        falls = fallen(mask, *shape, device=CPU)
        assert torch.equal(found, given.masked_fill(falls, 0) * mask.scale)


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    x, mask, before = torch.randn(300, 576), Mask(0.2, 7), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(dropped(x, mask))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_added_is_what_is_dropped_out_of(
    dtype: torch.dtype, library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, mask = torch.randn(20, 37).to(dtype), torch.randn(20, 37).to(dtype), Mask(0.5, 3)
    wanted = y.double() + x.double().masked_fill(fallen(mask, 20, 37, device=CPU), 0) * 2
    if not library:
        monkeypatch.setattr(native, "compiled", lambda dtype: None)
    add_dropped_(y, x, mask)
    torch.testing.assert_close(y.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-30)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.9])
def test_the_share_that_falls_is_the_one_asked_for_in_every_row_and_column(share: float) -> None:
    n, d = 4000, 600
    falls = fallen(Mask(share, 11), n, d, device=CPU).double()
    spread = (share * (1 - share)) ** 0.5
    assert abs(float(falls.mean()) - share) < 4 * spread / (n * d) ** 0.5
    for axis, size in ((0, n), (1, d)):  # each column, each row: as far off as chance puts them
        far = (falls.mean(axis) - share) / (spread / size**0.5)
        assert float(far.square().mean()) == pytest.approx(1, abs=0.25)


def test_places_and_masks_know_nothing_of_each_other() -> None:
    n, d, share = 2000, 512, 0.5
    first, second = (fallen(Mask(share, s), n, d, device=CPU).double() - share for s in (5, 6))
    far_off = 5 / (n * d) ** 0.5
    for distance in range(1, 9):
        for lines in (first, first.T):
            assert abs(float((lines[distance:] * lines[:-distance]).mean())) * 4 < far_off
    assert abs(float((first * second).mean())) * 4 < far_off
    # Rows against all other rows, columns against all other columns: like independent draws.
    for lines, size in ((first, d), (first.T, n)):
        together = (lines @ lines.T) * 4 / size**0.5  # standard normal, apart from the diagonal
        others = together[~torch.eye(len(lines), dtype=torch.bool)]
        assert float(others.square().mean()) == pytest.approx(1, abs=0.02)
        assert float(others.abs().max()) < 6.5


def test_a_share_near_its_ends_is_still_a_share() -> None:
    assert not fallen(Mask(1e-12, 1), 50, 50, device=CPU).any()
    assert fallen(Mask(1 - 1e-12, 1), 50, 50, device=CPU).all()


def test_the_mean_of_the_values_stays() -> None:
    found = dropped(torch.ones(1000, 1000), Mask(0.1, 2))
    assert float(found.mean()) == pytest.approx(1, abs=2e-3)
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.9])


def test_masks_are_drawn_from_torchs_generator_in_order_and_only_where_needed() -> None:
    torch.manual_seed(4)
    together = draw([0.1, 0.0, 0.2, 0.1])
    torch.manual_seed(4)
    apart = [draw([share])[0] for share in (0.1, 0.0, 0.2, 0.1)]
    assert together == apart and together[1] is None
    assert len({mask.seed for mask in together if mask}) == 3
    before = torch.get_rng_state()
    assert draw([0.0, 0.0]) == [None, None]
    assert torch.equal(torch.get_rng_state(), before)
