"""A rank that changes: growing changes nothing, shrinking is the best cut, Adam's sums follow."""

import pytest
import torch
from torch import Tensor

from loractl.lora.dynamic import Moments, resized, set_values_
from loractl.lora.init import default

D_IN, D_OUT = 12, 9


def factors(rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, D_IN, generator=generator),
        torch.randn(D_OUT, rank, generator=generator),
    )


def fresh(missing: int) -> tuple[Tensor, Tensor]:
    return default(missing, D_IN, D_OUT, torch.Generator().manual_seed(9))


def moments(rank: int) -> Moments:
    A, B = factors(rank, seed=3)
    A_squares, B_squares = (x.square() for x in factors(rank, seed=4))
    return Moments(((A, B),), ((A_squares, B_squares),))


def test_growing_keeps_the_old_directions_and_the_product() -> None:
    A, B = factors(3)
    new = resized(A, B, 7, fresh, None)
    assert new.A.shape == (7, D_IN) and new.B.shape == (D_OUT, 7)
    assert torch.equal(new.A[:3], A) and torch.equal(new.B[:, :3], B)
    assert not new.B[:, 3:].any() and new.A[3:].any(dim=1).all()
    torch.testing.assert_close(new.B @ new.A, B @ A)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_shrinking_reaches_the_truncated_svd(rank: int) -> None:
    A, B = factors(6)
    new = resized(A, B, rank, fresh, None)
    U, S, Vh = torch.linalg.svd((B @ A).double())
    best = U[:, :rank] * S[:rank] @ Vh[:rank]
    torch.testing.assert_close((new.B @ new.A).double(), best, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new.A.norm(), new.B.norm())


def test_shrinking_an_update_of_zero_leaves_a_start_that_can_be_trained() -> None:
    A, _ = factors(6)
    new = resized(A, torch.zeros(D_OUT, 6), 2, fresh, moments(6))
    assert not new.B.any() and new.A.any(dim=1).all()
    assert new.moments is not None and new.moments.averages[0][0].shape == (2, D_IN)
    assert torch.isfinite(new.moments.squares[0][0]).all()


def test_a_direction_that_the_update_lacks_is_drawn_anew() -> None:
    A, B = factors(6)
    B[:, 2:] = 0  # rank 2
    new = resized(A, B, 4, fresh, None)
    torch.testing.assert_close(new.B @ new.A, B @ A)
    assert not new.B[:, 2:].any() and new.A[2:].any(dim=1).all()


def test_first_moments_are_the_gradients_of_the_new_factors() -> None:
    """An average of gradients is linear: for one gradient G of the product it must be exact."""
    A, B = factors(6)
    G = torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(5))
    held = Moments(((B.T @ G, G @ A.T),), (((B.T @ G).square(), (G @ A.T).square()),))
    new = resized(A, B, 4, fresh, held)
    assert new.moments is not None
    torch.testing.assert_close(new.moments.averages[0][0], new.B.T @ G, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new.moments.averages[0][1], G @ new.A.T, rtol=1e-4, atol=1e-4)


def test_second_moments_are_those_of_independent_gradients() -> None:
    """Over many random gradients of A alone, the mean square of those that the new A would get."""
    A, B = factors(6)
    generator = torch.Generator().manual_seed(5)
    scale = torch.rand(6, D_IN, generator=generator) + 0.5
    draws = torch.randn(20000, 6, D_IN, generator=generator) * scale
    mean, square = draws.mean(0), draws.square().mean(0)
    zero_B = torch.zeros(D_OUT, 6)
    new = resized(A, B, 3, fresh, Moments(((mean, zero_B),), ((square, zero_B),)))
    X = torch.linalg.lstsq(B.double(), new.B.double()).solution.float()  # new B = B X
    expected = (X.T @ draws).square().mean(0)
    assert new.moments is not None
    torch.testing.assert_close(new.moments.squares[0][0], expected, rtol=0.06, atol=0)


def test_new_directions_begin_with_no_momentum_and_the_usual_size_of_a_step() -> None:
    A, B = factors(3)
    held = moments(3)
    new = resized(A, B, 5, fresh, held)
    assert new.moments is not None
    assert torch.equal(new.moments.averages[0][0][:3], held.averages[0][0]) and torch.equal(
        new.moments.averages[0][1][:, :3], held.averages[0][1]
    )
    assert not new.moments.averages[0][0][3:].any() and not new.moments.averages[0][1][:, 3:].any()
    torch.testing.assert_close(new.moments.squares[0][0][4], held.squares[0][0].mean(0))
    torch.testing.assert_close(new.moments.squares[0][1][:, 4], held.squares[0][1].mean(1))


def test_the_same_rank_is_the_same_adapter() -> None:
    A, B = factors(3)
    new = resized(A, B, 3, fresh, None)
    assert new.A is A and new.B is B


def test_values_that_are_set_are_known_to_be_others() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    parameter.grad = torch.ones(2, 3)
    before, given = parameter._version, torch.ones(3, 2).T
    set_values_(parameter, given)
    assert parameter._version > before and parameter.grad is None
    assert parameter.is_contiguous() and torch.equal(parameter, given)
    given.zero_()
    assert bool((parameter == 1).all()), "they are its own"
