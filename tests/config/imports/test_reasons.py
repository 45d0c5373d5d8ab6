"""What an import says about a key agrees with what an error message says about it."""

from pathlib import Path

import pytest

from loractl.config.imports.key_tables import KEYS
from loractl.config.imports.reasons import REASONS
from loractl.config.imports.tools import convert
from loractl.config.not_yet import ABSENT
from loractl.config.synonyms import KEYS as SYNONYMS


@pytest.mark.parametrize("why", REASONS)
def test_no_key_that_we_have_a_setting_for_is_said_to_have_none(why: str) -> None:
    """Unless the reason itself names our setting, or says that this version lacks it."""
    ours = {name: SYNONYMS.get(name.lower(), "").partition(":")[0] for name in REASONS[why]}
    wrong = {name: key for name, key in ours.items() if key and key not in why}
    assert ABSENT in why or not wrong, wrong


def test_no_key_is_listed_under_two_reasons() -> None:
    named = [name for listed in REASONS.values() for name in listed]
    assert {name for name in named if named.count(name) > 1} == set()


@pytest.mark.parametrize("name", [name for name in SYNONYMS if "." not in name])
def test_a_name_that_we_know_is_converted_or_answered_with_ours(name: str) -> None:
    found = convert({"sequence_len": 5, name: "x"}, Path())
    assert found.not_mapped.get(name) != "there is no such setting here"
    if name not in KEYS and name in found.not_mapped:
        assert SYNONYMS[name] in found.not_mapped[name]
