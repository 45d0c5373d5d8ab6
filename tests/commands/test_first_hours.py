"""The first hour with one's own rows: init, check, train and eval without editing anything, on a
real model. The model learns the task.

Where a processor has no bfloat16, each takes up to fifteen minutes of one core: there two of them
run, and `scripts/test --hours` runs all.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loractl.planning.known_model import automatic_dtype
from tests.commands.firsthours import chats, tickets

ROOT = Path(__file__).parent.parent.parent
BASE = ROOT / ".models" / "SmolLM2-135M-Instruct"
ROWS, HELD = 173, 20
MINUTES = 5  # on two cores that do nothing else
unhurried = pytest.mark.skipif(
    automatic_dtype() == "float32" and not os.environ.get("LORACTL_HOURS"),
    reason="a quarter of an hour without bfloat16: run scripts/test --hours",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BASE / "model.safetensors").is_file(), reason=f"no {BASE}: run scripts/fetch_base"
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty directory beside the quickstart's model, as a new user has it."""
    (tmp_path / ".models").mkdir()
    (tmp_path / ".models" / BASE.name).symlink_to(BASE)
    return tmp_path


def loractl(folder: Path, *argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "loractl", *argv],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def first_hour(
    folder: Path,
    data: str,
    held: str,
    metrics: str,
    *,
    init: Sequence[str] = (),
    evaluate: Sequence[str] = (),
) -> dict[str, Any]:
    """The losses of the run before and after, and what eval says of base and tuned model on rows
    held out. On a quiet machine it is done in time."""
    began, quiet = time.perf_counter(), os.getloadavg()[0] < 1
    loractl(folder, "init", *init, "--data", data, "--out", "own.yaml")
    loractl(folder, "check", "own.yaml")
    loractl(folder, "train", "own.yaml")
    asked = ("--data", held, "--metrics", metrics, *evaluate, "--json")
    base, tuned = json.loads(loractl(folder, "eval", "runs/own", *asked))
    if quiet:
        assert time.perf_counter() - began < 60 * MINUTES
    lines = (folder / "runs" / "own" / "metrics.jsonl").read_text().splitlines()
    losses = [row["eval_loss"] for row in map(json.loads, lines) if "eval_loss" in row]
    assert len(losses) >= 6, "a curve"
    return {"before": losses[0], "after": min(losses[1:]), "base": base, "tuned": tuned}


def write_json(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path.name


def test_support_tickets_in_a_table_with_columns_of_its_own(folder: Path) -> None:
    rows = tickets(ROWS + HELD, seed=7)
    with (folder / "tickets.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["ref", "received", "customer_question", "team"])
        writer.writerows(
            [f"T-{1000 + i}", f"2026-03-{1 + i % 28:02}", *row] for i, row in enumerate(rows[:ROWS])
        )
    held = [{"prompt": question, "completion": team} for question, team in rows[ROWS:]]
    found = first_hour(
        folder, "tickets.csv", write_json(folder / "held.jsonl", held), "loss,exact_match"
    )
    assert found["tuned"]["exact_match"]["value"] * HELD >= 12
    assert found["after"] <= found["before"] / 3


@unhurried
def test_conversations_in_the_layout_of_sharegpt(folder: Path) -> None:
    rows = [{"conversations": chat} for chat in chats(120 + HELD, seed=3)]
    data = write_json(folder / "chats.jsonl", rows[:120])
    held = write_json(folder / "held.jsonl", rows[120:])
    found = first_hour(folder, data, held, "loss,exact_match")
    assert found["after"] <= found["before"] / 3
    assert found["tuned"]["exact_match"]["value"] >= 0.6


@unhurried
def test_notes_to_json_under_names_of_their_own(folder: Path) -> None:
    def records(name: str, n: int) -> list[tuple[str, str]]:
        lines = (ROOT / "configs" / "data" / f"orders.{name}.jsonl").read_text().splitlines()[:n]
        return [
            (m[-2]["content"], m[-1]["content"]) for m in (json.loads(x)["messages"] for x in lines)
        ]

    train = [{"note": note, "record": record} for note, record in records("train", 200)]
    held = [{"prompt": note, "completion": record} for note, record in records("heldout", HELD)]
    found = first_hour(
        folder,
        write_json(folder / "notes.jsonl", train),
        write_json(folder / "held.jsonl", held),
        "loss,json_match",
    )
    assert found["after"] <= found["before"] / 3
    assert found["tuned"]["json_match"]["value"] >= 0.8


def test_tool_calls_for_a_model_whose_own_template_writes_none(folder: Path) -> None:
    for split in ("train", "heldout"):
        name = f"calls.{split}.jsonl"
        (folder / name).symlink_to(ROOT / "configs" / "data" / name)
    found = first_hour(
        folder,
        "calls.train.jsonl",
        "calls.heldout.jsonl",
        "loss,tool_call",
        init=("--template", "tool-calls"),
        evaluate=("--max-new-tokens", "96"),  # the base never ends: it knows no call
    )
    assert "chat_template: chatml-tools" in (folder / "own.yaml").read_text()
    assert found["base"]["tool_call"]["value"] == 0
    assert found["tuned"]["tool_call"]["value"] >= 0.9
    assert found["tuned"]["rows"] == 64
    assert found["after"] <= found["before"] / 3
