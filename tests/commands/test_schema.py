"""`loractl schema`: a JSON Schema that says what the config file takes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from loractl.commands import schema
from loractl.config.validation import keys


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
