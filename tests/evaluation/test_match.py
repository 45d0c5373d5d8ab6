"""Each metric on answers that are right, wrong, and nearly right."""

import re

import pytest

from loractl.evaluation.match import contains, exact_match, json_match, matching


def test_exact_match_leaves_out_space_around_the_text_alone() -> None:
    assert exact_match(" yes\n", "yes") == 1.0
    assert exact_match("Yes", "yes") == exact_match("y es", "yes") == exact_match("", "yes") == 0.0


def test_contains_finds_the_expected_text_anywhere() -> None:
    assert contains("The answer is 42.", "42") == 1.0
    assert contains("The answer is 4 2.", "42") == 0.0


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ('{"b": 2, "a": 1}', 1.0),
        ('{"a": 1, "b": 3}', 0.5),
        ('{"a": 1}', 0.5),
        ('{"a": 1, "b": 2, "c": 3}', 2 / 3),
        ('{"a": "1", "b": "2"}', 0.0),
        ('{"a": 1, "b": 2', 0.0),
        ("[1, 2]", 0.0),
        ("", 0.0),
    ],
)
def test_json_match_is_the_share_of_fields_that_agree(answer: str, share: float) -> None:
    assert json_match(answer, '{"a": 1, "b": 2}') == pytest.approx(share)


def test_a_regex_is_searched_for_in_the_answer() -> None:
    assert matching(r"\d{2}")("it is 42", "") == 1.0
    assert matching(r"^\d{2}$")("it is 42", "") == 0.0
    with pytest.raises(re.error):
        matching("(")
