"""Packing: every example once, no row too long, and nothing left to chance."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loractl.data import pack as packing
from loractl.data.pack import pack

CASES = st.integers(1, 60).flatmap(
    lambda most: st.tuples(st.lists(st.integers(1, most), max_size=120), st.just(most))
)


@given(CASES, st.integers(1, 50))
def test_every_index_stands_in_one_row_and_no_row_is_over_the_limit(
    case: tuple[list[int], int], window: int
) -> None:
    lengths, most = case
    rows = pack(lengths, most, window=window)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= most for row in rows)


@given(CASES, st.integers(1, 50))
def test_packing_is_a_function_of_its_arguments(case: tuple[list[int], int], window: int) -> None:
    lengths, most = case
    again = pack(tuple(lengths), most, window=window)
    assert list(pack(lengths, most, window=window)) == list(again)


@given(CASES)
def test_rows_are_within_a_quarter_of_the_fewest_possible(case: tuple[list[int], int]) -> None:
    lengths, most = case  # first-fit decreasing: 11/9 of the optimum + 6/9 (Dosa 2007)
    fewest = math.ceil(sum(lengths) / most)
    larger_than_half = sum(2 * length > most for length in lengths)
    assert len(pack(lengths, most)) <= max(1.5 * fewest, larger_than_half + fewest)


@given(CASES, st.integers(1, 50))
def test_examples_are_packed_only_with_others_of_their_window(
    case: tuple[list[int], int], window: int
) -> None:
    lengths, most = case
    for row in pack(lengths, most, window=window):
        assert len({index // window for index in row}) == 1


def test_ordinary_lengths_fill_rows_to_nearly_all() -> None:
    lengths = [20 + 37 * i % 381 for i in range(2048)]
    rows = pack(lengths, 1024)
    assert sum(lengths) / (len(rows) * 1024) > 0.98


def test_rows_of_which_few_examples_fill_one_are_filled_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lengths spread as those of GSM8K, where first-fit decreasing fills rows of 512 to 96.5 %."""
    rng = np.random.RandomState(0)
    lengths = np.clip(rng.gamma(3, 40, 3000) + 100, 100, 512).astype(int)
    for most in (512, 1024, 2048):
        assert lengths.sum() / (len(pack(lengths, most)) * most) > 0.97
    some = lengths[:2048]
    best = pack(some, 512)
    monkeypatch.setattr(packing, "SLACKS", (1,))  # first-fit decreasing alone
    assert len(best) < 0.99 * len(pack(some, 512))
