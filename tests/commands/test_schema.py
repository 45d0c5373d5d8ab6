"""`loractl schema`: a JSON Schema that says what the config file takes, and the reference table."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loractl.commands import schema
from loractl.config.settings import NOT_YET
from loractl.config.validation import keys

README = Path(__file__).parent.parent.parent / "README.md"


def found_schema(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert schema.run() == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    parsed: dict[str, Any] = json.loads(captured.out)
    return parsed


def leaves(node: dict[str, Any], root: dict[str, Any], above: str = "") -> Iterator[str]:
    """The dotted keys of a schema; checks each mapping of settings on the way."""
    node = root["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    assert node["additionalProperties"] is False
    for name, inner in node["properties"].items():
        assert inner["description"]
        yield above + name
        if "$ref" in inner:
            yield from leaves(inner, root, f"{above}{name}.")


def test_the_schema_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    found = found_schema(capsys)
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert found["title"] == "loractl config" and found["required"] == ["model", "data"]
    assert list(leaves(found, found)) == keys()


def test_the_schema_has_the_bounds_and_takes_integers_for_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sections = found_schema(capsys)["$defs"]
    rate = sections["TrainSection"]["properties"]["learning_rate"]
    assert (rate["type"], rate["minimum"], rate["default"]) == ("number", 0, 2e-4)
    alpha = sections["LoraSection"]["properties"]["alpha"]["anyOf"]
    assert {"type": "number", "exclusiveMinimum": 0} in alpha and {"type": "null"} in alpha
    assert sections["ModelSection"]["properties"]["dtype"]["enum"][0] == "auto"


def test_the_schema_uses_only_words_of_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(found_schema(capsys))
    for word in ('"gt"', '"ge"', '"lt"', '"le"', '"min_length"'):
        assert word not in text


def test_the_reference_has_a_row_a_setting_and_marks_what_is_absent() -> None:
    rows = schema.reference_table().splitlines()[2:]
    assert all(row.count(" | ") == 3 for row in rows)
    named = {row.split("`")[1]: row for row in rows}
    parents = {key.rpartition(".")[0] for key in keys()}
    assert list(named) == [key for key in keys() if key not in parents]
    for key in NOT_YET:
        assert all("not available" in row for name, row in named.items() if name.startswith(key))
    assert "not available" not in named["lora.rank"]


def test_the_reference_replaces_what_is_between_the_markers() -> None:
    begin, end = "<!-- config-reference -->", "<!-- /config-reference -->"
    text = schema.with_reference(f"before\n{begin}\nold\n{end}\nafter\n")
    assert text.startswith(f"before\n{begin}\n| key |") and text.endswith(f"|\n{end}\nafter\n")
    assert schema.with_reference(text) == text
    with pytest.raises(ValueError, match="no <!-- config-reference -->"):
        schema.with_reference("nothing")


def test_the_readme_is_up_to_date() -> None:
    text = README.read_text(encoding="utf-8")
    assert schema.with_reference(text) == text, "run scripts/config_reference"
