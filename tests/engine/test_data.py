"""Which rows a run reads: the sources of its config, held-out ones by any of three ways."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from tests.runs import train
from tests.tiny import chat_rows, write_jsonl


def test_held_out_rows_may_be_a_list_of_sources_with_splits(
    config_file: Callable[..., Path], tmp_path: Path
) -> None:
    rows = chat_rows(9)
    DatasetDict(
        {"train": Dataset.from_list(rows[:4]), "test": Dataset.from_list(rows[4:6])}
    ).save_to_disk(tmp_path / "saved")
    other = write_jsonl(tmp_path / "other.jsonl", rows[6:])
    held_out = [{"path": str(tmp_path / "saved"), "split": "test"}, {"path": str(other)}]
    assert train(config_file(f"data: {{eval: {json.dumps(held_out)}}}", "train: {steps: 1}")) == 0
    accounts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert {n: a["rows"] for n, a in accounts.items()} == {"train": 12, "eval[0]": 2, "eval[1]": 3}


@pytest.mark.parametrize("key", ["split", "train_split"])
def test_a_split_in_the_wrong_place_leads_to_the_list(
    config_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], key: str
) -> None:
    assert train(config_file(f"data: {{{key}: train}}")) == 2
    assert "train: [{path: ..., split: train}]" in capsys.readouterr().err


def test_a_held_out_source_that_is_missing_is_named_by_its_place(
    config_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config_file("data: {eval: [{path: no/where.jsonl}]}")) == 2
    assert "data.eval[0].path: no/where.jsonl does not exist" in capsys.readouterr().err
