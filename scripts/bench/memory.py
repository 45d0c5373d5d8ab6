"""Peak resident memory of `loractl train` over a grid of settings, against what planning predicts.

Each point is a process of its own: two steps on SmolLM2-135M, rows of exactly as many tokens as
`max_length` says. What is measured is the process's largest resident size while it trains, from the
`peak_memory_bytes` of its last step; saving comes after.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bench import report, run, store

Found = dict[str, Any]
TITLE = "Memory"
ABOUT = """\
Peak resident memory of `loractl train` at the end of the second step: what `loractl estimate`
predicts, and what was measured. The prediction counts what is allocated; glibc's heap also has
holes, more of them with transformers' layers (DoRA, full fine-tuning) than with loractl's own."""
MODEL = run.ROOT / ".models" / "SmolLM2-135M-Instruct"
STEPS = 2  # from the second on the optimizer's state is there

BASE = {
    "method": "lora", "rank": 8, "targets": "all-linear", "length": 256, "batch": 1,
    "checkpointing": False, "dtype": "float32", "packing": False,
    "quantization": "none", "offload": "none", "accumulation": 1,
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
    {"quantization": "nf4"},
    {"quantization": "nf4-double"},
    {"quantization": "nf4-double", "length": 512},
    {"quantization": "nf4-double", "checkpointing": True},
    {"quantization": "nf4-double", "method": "dora"},
    {"quantization": "int8", "rank": 128},
    {"offload": "disk"},
    {"offload": "disk", "length": 512, "accumulation": 4},
    {"offload": "disk", "quantization": "nf4-double"},
    {"offload": "disk", "quantization": "nf4-double", "length": 512},
]


def config_of(point: Found, model: Path, directory: Path) -> Found:
    return {
        "model": {
            "name_or_path": str(model), "dtype": point["dtype"],
            "quantization": point["quantization"], "offload": point["offload"],
        },
        "method": point["method"],
        "lora": {"rank": point["rank"], "target_modules": point["targets"]},
        "data": {
            "train": str(directory / "rows.jsonl"), "format": "text", "too_long": "truncate",
            "max_length": point["length"], "packing": point["packing"],
        },
        "train": {
            "steps": STEPS, "batch_size": point["batch"], "save_every": 1000,
            "gradient_checkpointing": point["checkpointing"] or point["offload"] != "none",
            "gradient_accumulation": point["accumulation"],
        },
    }  # fmt: skip


def name_of(point: Found) -> str:
    words = [point["method"], point["targets"] if point["method"] != "full" else "", point["dtype"]]
    words += ["checkpointing"] if point["checkpointing"] else []
    words += ["packed"] if point["packing"] else []
    words += kept_of(point)
    words += [f"rank {point['rank']}"] if point["method"] != "full" else []
    return ", ".join(filter(None, [*words, f"{point['length']} x {point['batch']}"]))


def kept_of(point: Found) -> list[str]:
    """How the base is held, where that is not the default; older records do not say."""
    words = [point.get("quantization", "none")]
    words += ["from disk"] if point.get("offload", "none") != "none" else []
    words += [f"{n} micro-batches"] if (n := point.get("accumulation", 1)) > 1 else []
    return [word for word in words if word != "none"]


def measured(point: Found, model: Path) -> Found:
    """Train a point; its predicted and its measured bytes. Raises run.Failed."""
    with tempfile.TemporaryDirectory(prefix="loractl-bench-") as name:
        directory = Path(name)
        # Packed rows hold two texts each, so that attention needs a mask.
        words = point["length"] // 2 - 8 if point["packing"] else point["length"] + 8
        n_rows = 8 * point["batch"] * point["accumulation"]
        rows = [f"{n} " + "a " * words for n in range(n_rows)]
        lines = (json.dumps({"text": row}) for row in rows)
        (directory / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        config, path = config_of(point, model, directory), directory / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        cache = directory / "cache"
        told = subprocess.run(
            [sys.executable, "-m", "loractl", "estimate", str(path), "--json"],
            check=True, stdout=subprocess.PIPE, env=run.environment(cache), cwd=run.ROOT,
        )  # fmt: skip
        chosen = json.loads(told.stdout)
        trained = run.train(config, directory / "trained", cache=cache)
        return {
            "predicted_bytes": chosen["methods"][chosen["chosen"]]["cpu_rss_bytes"],
            "measured_bytes": trained["peak_rss_bytes"],
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="part of a name")
    parser.add_argument("--model", type=Path, default=MODEL, help="base model (%(default)s)")


def measure(asked: argparse.Namespace) -> int:
    """Run the grid, and keep each point as it is found."""
    points = {name_of(point): point for point in (BASE | changes for changes in GRID)}
    wanted = report.chosen(points, asked.only)
    if not asked.model.is_dir():
        sys.exit(f"error: {asked.model} is missing; run scripts/fetch_base")
    model, found = asked.model.resolve(), {}
    with tempfile.TemporaryDirectory() as name:
        machine = run.module("machine", cache=Path(name))
    del machine["dtype"]  # each point has its own
    for name in wanted:
        point = points[name]
        found[name] = {"machine": machine, **point, **measured(point, model)}
        store.keep(asked.results, "memory", name, found[name])
        report.say(f"{name}: off by {error_of(found[name]):+.1%}")
    print(section(found))
    return 0


def error_of(record: Found) -> float:
    return float(record["predicted_bytes"] / record["measured_bytes"] - 1)


def section(records: Mapping[str, Found]) -> str:
    return report.by_machine(records, table)


def table(records: Mapping[str, Found]) -> str:
    head = ["method", "rank", "tokens x rows", "predicted", "measured", "error"]
    errors = [abs(error_of(record)) for record in records.values()]
    told = f"median error {statistics.median(errors):.1%}, largest {max(errors):.1%}"
    return report.markdown(head, map(_row, records.values())) + f"\n\n{len(errors)} points: {told}."


def _row(record: Found) -> list[str]:
    what = [record["method"], record["targets"] if record["method"] != "full" else ""]
    what += [record["dtype"], "packed" if record["packing"] else ""]
    what += ["checkpointing"] if record["checkpointing"] else []
    what += kept_of(record)
    return [
        ", ".join(filter(None, what)),
        str(record["rank"]) if record["method"] != "full" else "",
        f"{record['length']} x {record['batch']}",
        f"{record['predicted_bytes'] / 2**20:,.0f} MiB",
        f"{record['measured_bytes'] / 2**20:,.0f} MiB",
        f"{error_of(record):+.1%}",
    ]
