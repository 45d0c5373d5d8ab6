"""The sample rows with tool calls: as the script writes them, truly held out, of every kind."""

import importlib.util
import json
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent
SPLITS = ("train", "heldout")


def load_script() -> ModuleType:
    loader = SourceFileLoader("make_calls", str(REPO / "scripts" / "make_calls"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


make_calls = load_script()


def read(split: str) -> list[dict[str, Any]]:
    lines = (REPO / "configs" / "data" / f"calls.{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def calls_of(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    functions = [call["function"] for call in row["messages"][1]["tool_calls"]]
    return [
        (one["name"], json.loads(given) if isinstance(given := one["arguments"], str) else given)
        for one in functions
    ]


def parameters_of(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    functions = [tool["function"] for tool in row["tools"]]
    return {one["name"]: one["parameters"]["properties"] for one in functions}


@pytest.mark.parametrize("split", SPLITS)
def test_the_committed_file_is_what_the_script_writes(split: str) -> None:
    path = REPO / "configs" / "data" / f"calls.{split}.jsonl"
    assert path.read_text("utf-8") == make_calls.make_file(split)
    assert len(read(split)) == {"train": 200, "heldout": 64}[split]


def test_no_call_and_no_request_is_in_both_files() -> None:
    calls, requests = (
        [{str(one) for row in read(split) for one in of(row)} for split in SPLITS]
        for of in (calls_of, lambda row: [row["messages"][0]["content"]])
    )
    for train, held_out in (calls, requests):
        assert train and held_out and not train & held_out


def test_each_held_out_tool_and_word_of_an_enum_occurs_in_training() -> None:
    train, held_out = (
        {
            (name, key, value)
            for row in read(split)
            for name, given in calls_of(row)
            for key, value in given.items()
        }
        for split in SPLITS
    )
    assert {name for name, _, _ in held_out} == set(make_calls.PARAMETERS)
    assert len(held_out - train) < len(held_out) / 10
    for name, key, value in held_out - train:
        schema, _ = make_calls.PARAMETERS[name][1][key]
        assert "enum" not in schema and schema["type"] != "boolean", value


@pytest.mark.parametrize("split", SPLITS)
def test_each_call_is_of_a_declared_tool_with_arguments_that_the_request_names(split: str) -> None:
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
    for row in read(split):
        declared, asked = parameters_of(row), row["messages"][0]["content"].lower()
        assert list(declared) == list(make_calls.PARAMETERS)
        for name, given in calls_of(row):
            assert given.keys() == declared[name].keys()
            for key, value in given.items():
                schema, words = make_calls.PARAMETERS[name][1][key]
                assert declared[name][key] == schema
                assert isinstance(value, kinds[schema["type"]])
                assert value in schema.get("enum", [value])
                assert any(said.lower() in asked for said in words if words[said] == value)


def test_rows_are_of_every_kind_that_users_have() -> None:
    rows = read("train")
    calls = [call for row in rows for call in row["messages"][1]["tool_calls"]]
    for share in (
        sum(len(row["messages"][1]["tool_calls"]) == 2 for row in rows) / len(rows),
        sum(isinstance(call["function"]["arguments"], str) for call in calls) / len(calls),
        sum("id" in call for call in calls) / len(calls),
    ):
        assert 0.15 < share < 0.85
    results = [row["messages"] for row in rows if len(row["messages"]) == 4]
    assert len(results) > 10 and all(one[2]["role"] == "tool" for one in results)
    assert {one[2].get("tool_call_id") for one in results} == {
        one[1]["tool_calls"][0].get("id") for one in results
    }
    assert all(row["messages"][-1].get("tool_calls") for row in read("heldout"))
