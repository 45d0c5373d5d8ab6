"""The account of a source: quantiles, histograms and lines in words."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from loractl.data.account import Account, Lines, histogram, quantile, warnings

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=200)


@given(LENGTHS)
def test_the_bars_hold_every_row_and_the_last_holds_the_longest(lengths: list[int]) -> None:
    bars = histogram(Counter(lengths))
    assert sum(count for _, count in bars) == len(lengths) and len(bars) <= 10
    assert bars[-1][0] >= max(lengths) and bars[-1][1]
    lower = 0
    for upper, count in bars:
        assert count == sum(lower < length <= upper for length in lengths)
        lower = upper


@given(LENGTHS, st.floats(0.01, 1))
def test_a_quantile_is_the_smallest_length_that_keeps_the_share(
    lengths: list[int], share: float
) -> None:
    found = quantile(Counter(lengths), share)
    assert sum(length <= found for length in lengths) >= share * len(lengths)
    assert sum(length < found for length in lengths) < share * len(lengths)


def test_lines_are_counted_beyond_those_that_are_kept() -> None:
    lines = Lines()
    for number in range(1, 2001):
        lines.add(number)
    assert lines.count == 2000 and len(lines.first) == 1000
    assert str(lines) == "lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 1990 more"


def test_an_account_is_read_back_as_it_was_written() -> None:
    account = Account("a.jsonl", "00", "messages", rows=3, dropped=Lines(1, [2]))
    account.measure_(Counter({10: 2, 700: 1}))
    assert Account.from_dict(account.as_dict()) == account


def test_rows_that_lose_their_answer_are_told_with_the_length_that_keeps_them() -> None:
    account = Account("a.jsonl", "00", "messages", rows=3, truncated=Lines(2, [2, 5]))
    account.lost_answer.add(5)
    account.measure_(Counter({10: 2, 700: 1}))
    (warning,) = warnings(account, max_length=64)
    assert warning == (
        "a.jsonl: lines 2, 5 are cut to 64 tokens, 1 of them within an answer; data.max_length 700"
        " would keep 99% of the rows whole"
    )


def test_no_length_is_advised_that_the_model_has_no_positions_for() -> None:
    account = Account("a.jsonl", "00", "messages", rows=3, dropped=Lines(1, [2]))
    account.measure_(Counter({10: 2, 700: 1}))
    (told,) = warnings(account, max_length=64, positions=512)
    assert "only 512 positions; split the rows" in told and "700" not in told
    (told,) = warnings(account, max_length=64, positions=700)
    assert told.endswith("data.max_length 700 would keep 99% of the rows whole")


def test_empty_answers_are_told_with_their_count() -> None:
    account = Account("a.jsonl", "00", "messages", rows=3, empty=Lines(1, [2]))
    (told,) = warnings(account, max_length=64)
    assert told.startswith("a.jsonl: 1 row has an empty answer (line 2), which teaches")


def test_empty_sources_have_no_bars() -> None:
    assert histogram(Counter()) == [] and quantile(Counter(), 0.99) == 0
