"""Full fine-tuning against LoRA on the quickstart's task: what each forgets at equal loss.

Each run measures the held-out loss of the task and the loss on general text every few steps. The
table compares the runs where their training loss, a mean of five steps, first falls under a value,
and at their ends. `--out` keeps the runs, and a run that is there is not made again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bench import report, store
from bench import run as runs

Found = dict[str, Any]
TITLE = "Forgetting"
ABOUT = """\
How much the loss on general text rises, in nats per token, while SmolLM2-135M-Instruct learns
the quickstart's orders: where the training loss (a mean of five steps) first falls below a
value, and at the end, with the held-out loss of the task in parentheses."""
MODEL = runs.ROOT / ".models" / "SmolLM2-135M-Instruct"
LEVELS = (0.1, 0.03, 0.01)  # nats a token
SMOOTHED = 5
RUNS = {
    # LoRA takes about ten times the rate of full fine-tuning.
    "full fine-tuning": {"method": "full", "rate": 1e-4},
    "LoRA, rank 4": {"method": "lora", "rank": 4, "rate": 1e-3},
    "LoRA, rank 64": {"method": "lora", "rank": 64, "rate": 1e-3},
}


def config_of(run: Found, asked: argparse.Namespace, out: Path) -> Found:
    lora = {"rank": run["rank"], "alpha": 2 * run["rank"]} if "rank" in run else {}
    return {
        "model": {"name_or_path": str(asked.model.resolve()), "dtype": "float32"},
        "method": run["method"],
        "lora": lora,
        "data": {
            "train": str(runs.ROOT / "configs/data/orders.train.jsonl"),
            "eval": str(runs.ROOT / "configs/data/orders.heldout.jsonl"),
            "retain": str(asked.retain.resolve()), "max_length": 128,
            "too_long": "truncate", "packing": False,
        },
        "train": {
            "steps": asked.steps, "batch_size": 4, "learning_rate": run["rate"], "warmup": 0.05,
            "eval_every": 4, "save_every": asked.steps, "keep_checkpoints": 1,
        },
        "out": str(out),
    }  # fmt: skip


def train(name: str, run: Found, asked: argparse.Namespace) -> list[Found]:
    """Run it where that was not done yet; return the rows of its metrics."""
    out = asked.out.resolve() / name.replace(", ", "-").replace(" ", "-").lower()
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config_of(run, asked, out)), encoding="utf-8")
    command = [sys.executable, "-m", "loractl", "train", str(path)]
    command += ["--resume"] if out.exists() else []
    with tempfile.TemporaryDirectory() as cache:
        environment = runs.environment(Path(cache))
        subprocess.run(command, check=True, env=environment, cwd=runs.ROOT)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def places(rows: list[Found], steps: int) -> list[Found]:
    """What was lost and learned at each level of the training loss, and at the end."""
    losses = [row["loss"] for row in rows if "loss" in row]
    held = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    general = [(row["step"], row["retain_loss"]) for row in rows if "retain_loss" in row]
    means = [
        (end, sum(losses[end - SMOOTHED : end]) / SMOOTHED)
        for end in range(SMOOTHED, len(losses) + 1)
    ]
    reached: list[tuple[float | None, int | None]] = [
        (level, next((step for step, mean in means if mean < level), None)) for level in LEVELS
    ]
    found: list[Found] = []
    for level, step in [*reached, (None, steps)]:
        one: Found = {"training_loss": level, "step": step}
        if step is not None:
            now = between(general, step)
            one |= {"held_out_loss": between(held, step), "general_loss": now}
            one["forgotten"] = now - general[0][1]
        found.append({key: round(x, 5) if isinstance(x, float) else x for key, x in one.items()})
    return found


def between(points: list[tuple[int, float]], step: float) -> float:
    """The value at a step, on the line between the two measured points around it."""
    for (before, low), (after, high) in zip(points, points[1:], strict=False):
        if before <= step <= after:
            return low + (high - low) * (step - before) / (after - before)
    return points[-1][1]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--retain", type=Path, required=True, help="general text, as data.retain takes it"
    )
    parser.add_argument("--steps", type=int, default=40, help="steps of each run (40)")
    parser.add_argument("--model", type=Path, default=MODEL, help="base model (%(default)s)")
    parser.add_argument("--out", type=Path, default=runs.ROOT / "runs/forgetting", metavar="DIR")


def measure(asked: argparse.Namespace) -> int:
    for path in (asked.retain, asked.model / "config.json"):
        if not path.is_file():
            sys.exit(f"error: {path}: no such file")
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        machine = runs.module("machine", cache=Path(name))
    found: dict[str, list[Found]] = {}
    before = 0.0
    for name, run in RUNS.items():
        rows = train(name, run, asked)
        before = next(row["retain_loss"] for row in rows if "retain_loss" in row)
        found[name] = places(rows, asked.steps)
        report.say(f"{name}: {found[name][-1]['forgotten']:+.3f} after {asked.steps} steps")
    record = {
        "machine": machine | {"dtype": "float32"}, "steps": asked.steps,
        "retain": asked.retain.name, "general_loss_before": before, "runs": found,
    }  # fmt: skip
    store.keep(asked.results, "forgetting", "orders", record)
    print(section({"orders": record}))
    return 0


def section(records: Mapping[str, Found]) -> str:
    return report.by_machine(
        records, lambda group: "\n\n".join(table(record) for record in group.values())
    )


def table(record: Found) -> str:
    levels = [f"training loss {level:g}" for level in LEVELS]
    head = [f"{record['steps']} steps of 4 rows", *levels, "at the end (held-out loss)"]
    rows = [[name, *map(_cell, places)] for name, places in record["runs"].items()]
    before = f"{record['general_loss_before']:.3f}"
    told = f"General text: {record['retain']}, whose loss was {before} before training."
    return f"{report.markdown(head, rows)}\n\n{told}"


def _cell(one: Found) -> str:
    if "forgotten" not in one:
        return "not reached"
    if one["training_loss"] is None:
        return f"{one['forgotten']:+.3f} ({one['held_out_loss']:.3f})"
    at = f", step {one['step']}" if one["step"] is not None else ""
    return f"{one['forgotten']:+.3f}{at}"
