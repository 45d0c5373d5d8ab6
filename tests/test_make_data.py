"""The quickstart's orders: as the script writes them, truly held out, one right answer each."""

import importlib.util
import json
import re
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parent.parent
KEYS = ["customer", "item", "color", "quantity", "day"]


def load_script() -> ModuleType:
    loader = SourceFileLoader("make_data", str(REPO / "scripts" / "make_data"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


make_data = load_script()


def read(split: str) -> list[tuple[str, dict[str, object]]]:
    """The (note, order) of each row."""
    lines = (REPO / "configs" / "data" / f"orders.{split}.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    assert all([m["role"] for m in row] == ["system", "user", "assistant"] for row in rows)
    return [(row[1]["content"], json.loads(row[2]["content"])) for row in rows]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_committed_file_is_what_the_script_writes(split: str) -> None:
    path = REPO / "configs" / "data" / f"orders.{split}.jsonl"
    assert path.read_text("utf-8") == make_data.make_file(split)


@pytest.mark.parametrize("field", ["customer", "color", "quantity", "day"])
def test_no_pair_of_item_and_detail_is_in_both_files(field: str) -> None:
    pairs = {
        split: {(o["item"], o[field]) for _, o in read(split)} for split in ("train", "heldout")
    }
    assert pairs["train"] and pairs["heldout"]
    assert not pairs["train"] & pairs["heldout"]


def test_each_held_out_value_occurs_in_training() -> None:
    for key in KEYS:
        train, held_out = ({o[key] for _, o in read(split)} for split in ("train", "heldout"))
        assert held_out <= train, key


def test_no_note_occurs_twice() -> None:
    notes = [note for split in ("train", "heldout") for note, _ in read(split)]
    assert len(set(notes)) == len(notes)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_each_answer_is_compact_json_that_says_what_its_note_says(split: str) -> None:
    lines = (REPO / "configs" / "data" / f"orders.{split}.jsonl").read_text("utf-8").splitlines()
    for line, (note, order) in zip(lines, read(split), strict=True):
        assert list(order) == KEYS
        answer = json.loads(line)["messages"][2]["content"]
        assert answer == json.dumps(order, separators=(",", ":"))
        words = re.findall(r"\d+|[A-Za-z]+", note)
        quantity = order["quantity"]
        assert isinstance(quantity, int)
        spelled = make_data.NUMBER_WORDS[quantity - 1 : quantity]
        assert {str(quantity), *spelled} & set(words), note
        assert (order["item"] if quantity == 1 else make_data.ITEMS[order["item"]]) in note
        assert str(order["customer"]) in note and str(order["day"]) in note
        colors = [color for color in make_data.COLORS if color in words]
        assert colors == [order["color"]], note
