"""The small examples are what they say: best approximations, and steps of gradient descent."""

import numpy as np
import pytest

from loractl.reports.explain import small_examples


def test_the_error_falls_to_zero_at_the_rank_of_the_matrix_and_not_before() -> None:
    found = small_examples.approximation()
    U, V, sigma = (np.array(found[name]) for name in ("u", "v", "sigma"))
    exact = (U * sigma) @ V.T
    assert np.linalg.matrix_rank(exact, tol=1e-3) == found["rank"] == 5
    for k in range(6):
        left = np.linalg.norm(exact - (U[:, :k] * sigma[:k]) @ V[:, :k].T) / np.linalg.norm(exact)
        assert found["errors"][k] == pytest.approx(left, abs=1e-3)
    assert found["errors"][4] > 0.01 and set(found["errors"][5:]) == {0.0}
    assert found["noisy"][5] > 0.05  # with noise the rank is full
    assert found["noisy"] == sorted(found["noisy"], reverse=True)


def test_errors_are_shares_of_what_is_left_out() -> None:
    assert small_examples.errors([2.0, 1.0]) == [1.0, pytest.approx((1 / 5) ** 0.5, abs=1e-6), 0.0]


@pytest.mark.parametrize(("start", "zero", "random"), [("a", "B", "A"), ("b", "A", "B")])
def test_it_starts_from_nothing_and_the_zero_factor_moves_first(
    start: str, zero: str, random: str
) -> None:
    frames = small_examples.first_steps()[start]
    first, second = frames[0], frames[1]
    assert first["step"] == 0 and second["step"] == 1
    assert not np.any(first[zero]) and not np.any(first["BA"]) and np.all(first[random])
    # the gradient of the random factor passes through the zero one
    assert first[f"grad_{random}"] == 0 and first[f"grad_{zero}"] > 1
    assert second[random] == first[random] and np.any(second[zero])


@pytest.mark.parametrize("start", ["a", "b"])
def test_the_update_is_learned_and_is_the_product(start: str) -> None:
    frames = small_examples.first_steps()[start]
    losses = [frame["loss"] for frame in frames]
    assert losses == sorted(losses, reverse=True) and losses[0] == 1 and losses[-1] < 1e-3
    for frame in frames:
        assert np.array(frame["B"]) @ np.array(frame["A"]) == pytest.approx(
            np.array(frame["BA"]), abs=0.01
        )
