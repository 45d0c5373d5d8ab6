#!/usr/bin/env python3
"""Full fine-tuning against LoRA on the quickstart's task: what each forgets at equal loss.

scripts/bench_forgetting --retain GENERAL.jsonl [--steps 40] [--out DIR]

Each run measures the held-out loss of the task and the loss on general text every few steps. The
table compares the runs where their training loss, a mean of five steps, first falls under a value,
and at their ends. `--out` keeps the runs, and a run that is there is not made again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LEVELS = (0.1, 0.03, 0.01)  # nats a token
SMOOTHED = 5
RUNS = {
    # LoRA takes about ten times the rate of full fine-tuning.
    "full": {"method": "full", "rate": 1e-4},
    "LoRA, rank 4": {"method": "lora", "rank": 4, "rate": 1e-3},
    "LoRA, rank 64": {"method": "lora", "rank": 64, "rate": 1e-3},
}


def config_of(run: dict, retain: str, steps: int, out: Path) -> dict:
    lora = {"rank": run["rank"], "alpha": 2 * run["rank"]} if "rank" in run else {}
    return {
        "model": {"name_or_path": str(ROOT / ".models/SmolLM2-135M-Instruct"), "dtype": "float32"},
        "method": run["method"],
        "lora": lora,
        "data": {
            "train": str(ROOT / "configs/data/orders.train.jsonl"),
            "eval": str(ROOT / "configs/data/orders.heldout.jsonl"),
            "retain": retain, "max_length": 128, "too_long": "truncate", "packing": False,
        },
        "train": {
            "steps": steps, "batch_size": 4, "learning_rate": run["rate"], "warmup": 0.05,
            "eval_every": 4, "save_every": steps, "keep_checkpoints": 1,
        },
        "out": str(out),
    }  # fmt: skip


def train(name: str, run: dict, retain: str, steps: int, directory: Path) -> list[dict]:
    """Run it where that was not done yet; return the rows of its metrics."""
    out = directory / name.replace(", ", "-").replace(" ", "-").lower()
    path = directory / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(config_of(run, retain, steps, out)), encoding="utf-8")
    command = [sys.executable, "-m", "loractl", "train", str(path)]
    subprocess.run([*command, *(["--resume"] if out.exists() else [])], check=True, cwd=ROOT)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def between(points: list[tuple[int, float]], step: float) -> float:
    """The value at a step, on the line between the two measured points around it."""
    for (before, low), (after, high) in zip(points, points[1:], strict=False):
        if before <= step <= after:
            return low + (high - low) * (step - before) / (after - before)
    return points[-1][1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--retain", required=True, help="general text, as data.retain takes it")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/forgetting")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    print("| run | where | step | held-out loss | loss on general text | forgotten |")
    print("|---|---|---|---|---|---|")
    for name, run in RUNS.items():
        rows = train(name, run, str(Path(asked.retain).resolve()), asked.steps, asked.out)
        losses = [row["loss"] for row in rows if "loss" in row]
        held = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
        general = [(row["step"], row["retain_loss"]) for row in rows if "retain_loss" in row]
        means = [
            (end, sum(losses[end - SMOOTHED : end]) / SMOOTHED)
            for end in range(SMOOTHED, len(losses) + 1)
        ]
        places = [
            (f"training loss {level}", next((step for step, mean in means if mean < level), None))
            for level in LEVELS
        ]
        for where, step in [*places, ("the end", asked.steps)]:
            if step is None:
                print(f"| {name} | {where} | not reached | | | |")
                continue
            now = between(general, step)
            values = f"{between(held, step):.3f} | {now:.3f} | {now - general[0][1]:+.3f}"
            print(f"| {name} | {where} | {step} | {values} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
