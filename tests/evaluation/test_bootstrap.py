"""The interval of a figure: what the bootstrap gives where theory knows the answer."""

import math

import numpy as np
import pytest

from loractl.evaluation.bootstrap import ratio


def test_the_value_is_the_sum_over_the_sum() -> None:
    figure = ratio([1.0, 9.0], [1.0, 3.0])
    assert figure.value == 2.5 and figure.low <= 2.5 <= figure.high


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.RandomState(3).normal(5.0, 2.0, 400)
    figure = ratio(list(values), [1.0] * 400)
    half = 1.96 * values.std() / math.sqrt(400)
    assert figure.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_a_paired_difference_leaves_out_what_varies_in_both() -> None:
    old = list(np.random.RandomState(0).normal(100.0, 30.0, 200))
    figure = ratio([x + 1.0 for x in old], [1.0] * 200, less=old)
    assert figure.low == pytest.approx(1.0) and figure.high == pytest.approx(1.0)


def test_the_same_rows_give_the_same_interval() -> None:
    values = [n**1.5 for n in range(50)]
    assert ratio(values, [1.0] * 50) == ratio(values, [1.0] * 50)
    assert ratio(values, [1.0] * 50) != ratio(values, [1.0] * 50, seed=1)
