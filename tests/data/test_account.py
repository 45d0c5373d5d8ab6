"""The account of a source: quantiles, histograms and lines in words."""

from collections import Counter
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from loractl.data.account import (
    COUNTS,
    LINES,
    MOST_KEPT,
    Account,
    Lines,
    histogram,
    quantile,
    warnings,
)

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


def test_no_setting_is_advised_where_no_trained_answer_loses_its_reasoning() -> None:
    account = Account("a.jsonl", "00", "messages", rows=3, lost_thoughts=4)
    (told,) = warnings(account, max_length=64)
    assert "the reasoning of 4 earlier answers that precede" in told and "data." not in told
    account.lost_trained = 2
    (told,) = warnings(account, max_length=64)
    assert "4 earlier answers, 2 of them trained without it" in told
    assert "data.split_turns" in told and "data.train_on" in told


def test_empty_sources_have_no_bars() -> None:
    assert histogram(Counter()) == [] and quantile(Counter(), 0.99) == 0


def test_the_accounts_of_stretches_add_up_field_by_field() -> None:
    of_all = {"path", "sha256", "weight", "longest", "keeps_99_percent", "lengths"}
    of_any = {"format", "unread", "rendered_as", "doubled_as"}
    names = {field.name for field in fields(Account)}
    assert names == {*LINES, *COUNTS, *of_all, *of_any}, "a new field needs its sum"
    first, second = (Account("a", "", "auto") for _ in range(2))
    for number, name in enumerate(COUNTS, 1):
        setattr(first, name, number)
        setattr(second, name, 10 * number)
    first.dropped.add(3)
    for line in range(MOST_KEPT + 5):
        second.dropped.add(line)
    first.unread, second.unread = {"b": 1}, {"a": 2, "b": 3}
    second.format, second.rendered_as, second.doubled_as = "text", "[INST]", "</s>"
    first.add_(second)
    assert [getattr(first, name) for name in COUNTS] == [11 * n for n in range(1, len(COUNTS) + 1)]
    assert first.dropped.count == MOST_KEPT + 6 and len(first.dropped.first) == MOST_KEPT
    assert first.dropped.first[:3] == [3, 0, 1]
    assert list(first.unread.items()) == [("b", 4), ("a", 2)]
    assert (first.format, first.rendered_as, first.doubled_as) == ("text", "[INST]", "</s>")
