"""Numbers from files that may hold anything."""

import math
import random

import pytest

from loractl.reports.run_page.numbers import last, number, points, thinned, training_seconds


@pytest.mark.parametrize(
    "value", [None, True, "3", [1], {}, math.nan, math.inf, -math.inf, 10**400, -(10**400)]
)
def test_what_is_no_finite_number_is_left_out(value: object) -> None:
    assert number(value) is None
    assert points([{"step": 1, "loss": value}, {"step": value, "loss": 1.0}], "loss") == []


def test_points_are_by_step_and_the_last_row_of_a_step_counts() -> None:
    rows = [{"step": 2, "loss": 1}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 5}, {"step": 3}]
    assert points(rows, "loss") == [(1.0, 3.0), (2.0, 5.0)]
    assert last(rows, "loss") == 5.0 and last(rows, "lr") is None


def test_a_long_curve_keeps_its_ends_and_every_extreme_in_few_points() -> None:
    draw = random.Random(0)
    curve = [(float(x), draw.random()) for x in range(12_345)]
    curve[777], curve[8000] = (777.0, 9.0), (8000.0, -9.0)
    few = thinned(curve, 400)
    assert len(few) <= 402 and few == sorted(few) and set(few) <= set(curve)
    assert {curve[0], curve[-1], curve[777], curve[8000]} <= set(few)
    assert thinned(curve[:400], 400) == curve[:400]


def test_seconds_are_tokens_by_their_speed() -> None:
    rows = [{"tokens": 100, "tokens_per_s": 50.0}, {"tokens": 30, "tokens_per_s": 10}, {"step": 3},
            {"tokens": 5, "tokens_per_s": 0}, {"tokens": "x", "tokens_per_s": -1}]  # fmt: skip
    assert training_seconds(rows) == 5.0
