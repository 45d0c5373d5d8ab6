"""The reference table: a row a setting, that says of each what holds of it."""

import json
from pathlib import Path

import pytest

from loractl.commands.schema import json_schema
from loractl.config import reference
from loractl.config.not_yet import NOT_YET
from loractl.config.validation import keys

README = Path(__file__).parent.parent.parent / "configs" / "README.md"
ABSENCE = ("not available", "not yet", "not served", "not supported", "in this version", "later")


def test_the_reference_has_a_row_a_setting_and_marks_what_is_absent() -> None:
    rows = reference.reference_table().splitlines()[2:]
    assert all(row.count(" | ") == 3 for row in rows)
    named = {row.split("`")[1]: row for row in rows}
    parents = {key.rpartition(".")[0] for key in keys()}
    assert list(named) == [key for key in keys() if key not in parents]
    for key in NOT_YET:
        assert all("not available" in row for name, row in named.items() if name.startswith(key))
    assert "not available" not in named["lora.rank"]


def test_the_reference_replaces_what_is_between_the_markers() -> None:
    begin, end = "<!-- config-reference -->", "<!-- /config-reference -->"
    text = reference.with_reference(f"before\n{begin}\nold\n{end}\nafter\n")
    assert text.startswith(f"before\n{begin}\n| key |") and text.endswith(f"|\n{end}\nafter\n")
    assert reference.with_reference(text) == text
    with pytest.raises(ValueError, match="no <!-- config-reference -->"):
        reference.with_reference("nothing")


def test_the_readme_is_up_to_date() -> None:
    text = README.read_text(encoding="utf-8")
    assert reference.with_reference(text) == text, "run scripts/config_reference"


def test_nothing_is_called_absent_that_is_not_refused() -> None:
    for row in reference.reference_table().splitlines()[2:]:
        key = row.split("`")[1]
        refused = any(f"{key}.".startswith(f"{other}.") for other in NOT_YET)
        assert refused or not any(word in row for word in ABSENCE), row
    text = json.dumps(json_schema()).lower()
    assert not any(word in text for word in ABSENCE), "a description says it by itself"
