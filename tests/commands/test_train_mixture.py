"""`loractl train` on a mixture: sources of different format, each taken in its own weight."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from loractl.data import batches
from loractl.progress import Progress
from tests.tiny import chat_rows, write_jsonl

Trained = list[list[str]]
EPOCH = 4  # steps: 6 rows twice and half of 8 rows, four a step


@pytest.fixture
def mixture(config_file: Callable[..., Path], tmp_path: Path) -> Path:
    """The config of two epochs over six rows of one format, twice each, and half of eight others'.

    Each row is a row of its own in a batch, so that the metrics can be counted by hand.
    """
    orders = [{"instruction": f"Say {i}.", "input": "x" * i, "output": f"{i}"} for i in range(6)]
    write_jsonl(tmp_path / "orders.jsonl", orders)
    write_jsonl(tmp_path / "chats.jsonl", chat_rows(8))
    sources = [
        {"path": str(tmp_path / "orders.jsonl"), "format": "alpaca", "weight": 2},
        {"path": str(tmp_path / "chats.jsonl"), "weight": 0.5},
    ]
    return config_file(
        json.dumps({"data": {"train": sources, "packing": False}}),
        "train: {steps: null, epochs: 2, save_every: 3}",
        "lora: {dropout: 0.2}",
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Where the rows of each window stand that a run takes, as file:line, in order."""
    taken: Trained = []
    own = batches.windows

    def noting(*given: Any) -> Iterator[Any]:
        for window, after in own(*given):
            where = [str(line) for batch in window for line in batch.lines]
            taken.append([line.rpartition("/")[2] for line in where])
            yield window, after

    monkeypatch.setattr(batches, "windows", noting)
    return taken


def metrics_of(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = ("tokens_per_s", "peak_memory_bytes")
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def test_both_sources_are_accounted_for_and_trained_in_their_weights(
    mixture: Path, trained: Trained, tmp_path: Path
) -> None:
    assert main(["train", str(mixture)]) == 0
    accounts = json.loads((tmp_path / "run" / "data.json").read_text())
    orders, chats = (accounts[f"train[{number}]"] for number in range(2))
    assert accounts.keys() == {"train[0]", "train[1]"}
    assert [Path(one["path"]).name for one in (orders, chats)] == ["orders.jsonl", "chats.jsonl"]
    assert (orders["format"], chats["format"]) == ("alpaca", "messages")
    assert (orders["rows"], orders["examples"], orders["weight"]) == (6, 6, 2)
    assert (chats["rows"], chats["examples"], chats["weight"]) == (8, 8, 0.5)
    rows = metrics_of(tmp_path / "run")
    assert len(rows) == 2 * EPOCH
    halves = []
    for start in (0, EPOCH):
        found = Counter(line for window in trained[start : start + EPOCH] for line in window)
        assert {line: n for line, n in found.items() if line.startswith("orders")} == {
            f"orders.jsonl:{line}": 2 for line in range(1, 7)
        }
        halves.append({line: n for line, n in found.items() if line.startswith("chats")})
        assert list(halves[-1].values()) == [1] * 4
    assert halves[0] != halves[1], "another half of the rows each epoch"


def test_a_run_of_a_mixture_is_resumed_bit_for_bit(
    mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", str(mixture), "--out", str(tmp_path / "whole")]) == 0
    show = Progress.step

    def stopping(self: Progress, done: int, text: str, *, seconds_left: float) -> None:
        show(self, done, text, seconds_left=seconds_left)
        if done in (2, EPOCH, EPOCH + 1):  # within an epoch, at its end, in the next one
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "step", stopping)
    for options in ([], ["--resume"], ["--resume"]):
        assert main(["train", str(mixture), *options]) == 130
    assert main(["train", str(mixture), "--resume"]) == 0
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert metrics_of(whole) == metrics_of(run)
    for name in (
        "adapter/adapter_model.safetensors",
        f"checkpoints/step-{2 * EPOCH:06d}/optimizer.safetensors",
        "data.json",
    ):
        assert (whole / name).read_bytes() == (run / name).read_bytes(), name
