"""Peak resident memory of `loractl train` over a grid of settings, against what planning predicts.

Each point is a process of its own: two steps on SmolLM2-135M, rows of exactly as many tokens as
`max_length` says. What is measured is the process's largest resident size while it trains, from the
`peak_memory_bytes` of its last step; saving comes after.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from bench_report import put

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct"
STEPS = 2  # from the second on the optimizer's state is there

BASE = {
    "method": "lora", "rank": 8, "targets": "all-linear", "length": 256, "batch": 1,
    "checkpointing": False, "dtype": "float32", "packing": False,
}  # fmt: skip
GRID: list[dict[str, Any]] = [
    {},
    {"length": 64},
    {"length": 512},
    {"batch": 2},
    {"rank": 1},
    {"rank": 128},
    {"targets": "minimal"},
    {"method": "dora"},
    {"packing": True},
    {"checkpointing": True},
    {"checkpointing": True, "length": 512},
    {"method": "full", "length": 64},
    {"method": "full"},
    {"method": "full", "checkpointing": True},
    {"dtype": "bfloat16", "length": 16},
]


def config_of(point: dict[str, Any], directory: Path) -> dict[str, Any]:
    return {
        "model": {"name_or_path": str(MODEL), "dtype": point["dtype"]},
        "method": point["method"],
        "lora": {"rank": point["rank"], "target_modules": point["targets"]},
        "data": {
            "train": str(directory / "rows.jsonl"), "format": "text", "too_long": "truncate",
            "max_length": point["length"], "packing": point["packing"],
        },
        "train": {
            "steps": STEPS, "batch_size": point["batch"], "save_every": 1000,
            "gradient_checkpointing": point["checkpointing"],
        },
        "out": str(directory / "run"),
    }  # fmt: skip


def run(point: dict[str, Any]) -> tuple[int, int]:
    """Train a point; return its predicted and its measured bytes."""
    with tempfile.TemporaryDirectory(prefix="loractl-bench-") as name:
        directory = Path(name)
        # Packed rows hold two texts each, so that attention needs a mask.
        words = point["length"] // 2 - 8 if point["packing"] else point["length"] + 8
        rows = [f"{n} " + "a " * words for n in range(8 * point["batch"])]
        lines = (json.dumps({"text": row}) for row in rows)
        (directory / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        path = directory / "config.yaml"
        path.write_text(yaml.safe_dump(config_of(point, directory)), encoding="utf-8")
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "LORACTL_CACHE": str(directory / "cache")}
        command = [sys.executable, "-m", "loractl"]
        told = subprocess.run(
            [*command, "estimate", str(path), "--json"],
            check=True, capture_output=True, env=env, cwd=ROOT,
        )  # fmt: skip
        chosen = json.loads(told.stdout)
        predicted = chosen["methods"][chosen["chosen"]]["cpu_rss_bytes"]
        subprocess.run([*command, "train", str(path)], check=True, capture_output=True, env=env)
        steps = (directory / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return predicted, json.loads(steps[-1])["peak_memory_bytes"]


def measure(*, points: int | None, dry: bool) -> int:
    """Run the grid, print the table, and put it into README.md."""
    if not MODEL.is_dir():
        sys.exit(f"error: {MODEL} is missing; run scripts/fetch_base")
    lines = [
        "| what | rank | tokens x rows | predicted | measured | error |",
        "|---|---|---|---|---|---|",
    ]
    errors = []
    for changes in GRID[:points]:
        point = BASE | changes
        predicted, measured = run(point)
        errors.append(abs(predicted / measured - 1))
        lines.append(_row(point, predicted, measured))
        print(lines[-1], flush=True)
    summary = (
        f"{len(errors)} points: median error {statistics.median(errors):.1%}, worst"
        f" {max(errors):.1%}."
    )
    print(summary)
    if not dry:
        put(ROOT / "README.md", "memory-table", "\n".join([*lines, "", summary]))
    return 0


def _row(point: dict[str, Any], predicted: int, measured: int) -> str:
    what = [point["method"], point["targets"] if point["method"] != "full" else "", point["dtype"]]
    what += ["checkpointing"] if point["checkpointing"] else []
    what += ["packed"] if point["packing"] else []
    cells = [
        ", ".join(word for word in what if word),
        str(point["rank"]) if point["method"] != "full" else "",
        f"{point['length']} x {point['batch']}",
        f"{predicted / 2**20:,.0f} MiB",
        f"{measured / 2**20:,.0f} MiB",
        f"{predicted / measured - 1:+.1%}",
    ]
    return f"| {' | '.join(cells)} |"
