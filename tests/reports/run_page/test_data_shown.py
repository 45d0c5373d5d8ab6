"""The data section: counts and lengths as data.json has them, and no fault from a damaged one."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from loractl.data.account import Account
from loractl.reports.run_page.data_shown import sources
from tests.reports.run_page.made import content


def account(**changed: Any) -> dict[str, Any]:
    plain = Account("rows.jsonl", "ab", "messages", rows=4, examples=4, tokens=80,
                    trained_tokens=20, longest=30, lengths=[(10, 1), (20, 2), (30, 1)])  # fmt: skip
    return {**plain.as_dict(), **changed}


def test_counts_are_those_of_the_account_and_what_was_cut_is_said() -> None:
    cut = account(truncated={"count": 2, "first": [3, 7]})
    (whole,), (short,) = (
        sources(replace(content(), accounts={"train": one})) for one in (account(), cut)
    )
    assert (whole.name, whole.path) == ("train", "rows.jsonl")
    assert whole.counts == "4 rows, 4 examples, 80 tokens" and whole.share == "20 trained (25%)"
    assert whole.warnings == []
    assert short.warnings[0].startswith("rows.jsonl: lines 3, 7 are cut to 1024 tokens")


def test_a_bar_is_as_high_as_its_rows_and_the_limit_is_drawn_where_it_is_in_sight() -> None:
    limit = {**content().settings, "data.max_length": 20}
    run = replace(content(), accounts={"train": account()}, settings=limit)
    (source,) = sources(run)
    root = ET.fromstring(str(source.lengths))
    heights = [float(one.attrib["height"]) for one in root.iter("rect")]
    assert heights == [50.0, 100.0, 50.0] and "max_length" in str(source.lengths)
    assert "11 to 20 tokens: 2 rows" in str(source.lengths)
    (far,) = sources(replace(run, settings={**limit, "data.max_length": 1024}))
    assert "max_length" not in str(far.lengths)


def test_the_rows_of_training_are_first() -> None:
    found = sources(replace(content(), accounts={"eval": account(), "train[0]": account()}))
    assert [one.name for one in found] == ["train[0]", "eval"]


def test_a_source_without_tokens_has_no_share_and_no_picture() -> None:
    empty = account(tokens=0, trained_tokens=0, lengths=[])
    (source,) = sources(replace(content(), accounts={"train": empty}))
    assert source.share == "0 trained" and source.lengths is None


@pytest.mark.parametrize(
    "broken", [7, {}, account(lengths="x"), account(lengths=[[5, "x"]]), account(tokens="many")]
)
def test_a_damaged_account_is_left_out(broken: Any) -> None:
    found = sources(replace(content(), accounts={"eval": broken, "train": account()}))
    assert [one.name for one in found] == ["train"]
