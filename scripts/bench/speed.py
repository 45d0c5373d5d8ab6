"""Speed and memory of `loractl train` against what others use, on this machine.

Each measurement is a process of its own, alone; the jobs of a workload are run in turn, repeat
after repeat, so that what else the machine does falls on all alike. What was found goes into a JSON
file, after each job, and as medians into a table. A workload measured again, even in part, replaces
what the file had of it; the others stay.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_report
import bench_run
from bench_jobs import Found, Setting, Workload
from bench_workloads import WORKLOADS

RESULTS = bench_run.ROOT / "build" / "bench_speed.json"
DEFAULT = ["chats", "256x4"]
EQUAL = {"float32": 1e-4, "bfloat16": 0.03}
"""How far the losses of one step may lie apart, in nats."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--data", type=Path, required=True, help="JSONL of chats")
    parser.add_argument("--steps", type=int, default=6, help="steps of ours (6)")
    parser.add_argument("--peer-steps", type=int, default=4, help="steps of the peers (4)")
    parser.add_argument("--repeats", type=int, default=3, help="times each is measured (3)")
    parser.add_argument("--batch", type=int, default=8, help="chats a step of the peers (8)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=DEFAULT,
        metavar="NAME",
        help=f"workloads, of {', '.join(WORKLOADS)}, or all; or WORKLOAD/PART OF A JOB'S NAME"
        f" ({' '.join(DEFAULT)})",
    )
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file (%(default)s)")
    parser.add_argument("--write", type=Path, metavar="README.md", help="put the table there")
    parser.add_argument("--plot", type=Path, help="PNG of the curves (beside --results)")


def measure(asked: argparse.Namespace) -> int:
    """Run what is asked for; 1 where a job failed or losses that must agree do not."""
    chosen = _chosen(asked.only)
    if asked.write:
        bench_report.around(asked.write, "speed-table")  # before anything takes time
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    plot = asked.plot or asked.results.with_name("curves.png")
    results = bench_report.read(asked.results)
    is_good = True
    with tempfile.TemporaryDirectory(prefix="loractl-bench-") as name:
        setting = _setting(asked, Path(name))
        machine = setting.script("bench_machine.py")
        slow = machine["dtype"] == "float32"
        dtype = machine["dtype"] if asked.dtype == "auto" else asked.dtype
        setting = replace(setting, dtype=dtype, bf16_is_slow=slow)
        bench_report.say(f"{bench_report.machine_line(machine)}, {dtype}")
        for workload_name, parts in chosen.items():
            began = time.perf_counter()
            workload = WORKLOADS[workload_name](setting, workload_name)
            results[workload_name] = found = {
                "title": workload.title,
                "machine": {**machine, "dtype": dtype},
                "asked": {"steps": asked.steps, "repeats": asked.repeats, "batch": asked.batch},
                "jobs": {},
                "unequal": [],
                "apart": None,
            }
            for text in _run(workload, found, parts, asked.repeats):
                bench_report.say(f"{workload_name}: {text}")
                bench_report.write(asked.results, results)
            found["unequal"] = unequal(found["jobs"], workload.same_losses, EQUAL[dtype])
            found["apart"] = farthest(found["jobs"], workload.same_losses)
            found["minutes"] = round((time.perf_counter() - began) / 60, 1)
            bench_report.write(asked.results, results)
            for text in found["unequal"]:
                bench_report.say(f"{workload_name}: {text}")
            failed = any("failed" in one for runs in found["jobs"].values() for one in runs)
            is_good = is_good and not failed and not found["unequal"]
            if workload_name == "curves" and not failed:
                bench_report.plot_curves(found, plot)
                bench_report.say(f"{workload_name}: {plot}")
    print(bench_report.tables(results))
    if asked.write:
        bench_report.put(asked.write, "speed-table", bench_report.tables(results))
    return 0 if is_good else 1


def _setting(asked: argparse.Namespace, place: Path) -> Setting:
    for path in (asked.model / "config.json", asked.data):
        if not path.is_file():
            sys.exit(f"error: {path}: no such file")
    return Setting(
        model=asked.model.resolve(), data=asked.data.resolve(), dtype="", place=place,
        steps=asked.steps, peer_steps=asked.peer_steps, batch=asked.batch,
    )  # fmt: skip


def _chosen(only: list[str]) -> dict[str, list[str]]:
    """Workload -> parts of the names of its jobs that are wanted; [] for all of them."""
    if only == ["all"]:
        return {name: [] for name in WORKLOADS}
    chosen: dict[str, list[str]] = {}
    for text in only:
        name, _, part = text.partition("/")
        if name not in WORKLOADS:
            sys.exit(f"error: --only {text}: no such workload; there are {', '.join(WORKLOADS)}")
        chosen.setdefault(name, [])
        chosen[name] += [part] if part else []
    return chosen


def _run(workload: Workload, found: dict[str, Any], parts: list[str], repeats: int) -> Any:
    """Run the jobs in turn, repeat after repeat; yield a line after each. A fault ends no other."""
    for repeat in range(repeats):
        for job in workload.jobs:
            if (job.once and repeat) or (parts and not any(part in job.name for part in parts)):
                continue
            runs: list[Found] = found["jobs"].setdefault(job.name, [])
            try:
                runs.append(job.run(repeat))
            except bench_run.Failed as error:
                runs.append({"failed": str(error)})
            yield f"{repeat + 1}/{repeats} {job.name}: {bench_report.short(runs[-1])}"


def first_losses(jobs: dict[str, list[Found]], group: list[str]) -> list[tuple[str, float]]:
    return [
        (name, run["losses"][0]) for name in group for run in jobs.get(name, []) if "losses" in run
    ]


def unequal(jobs: dict[str, list[Found]], groups: list[list[str]], within: float) -> list[str]:
    """Say which first-step losses differ, of the jobs that train the same labels."""
    told = []
    for group in groups:
        found = first_losses(jobs, group)
        for name, loss in found[1:]:
            reference, expected = found[0]
            if not abs(loss - expected) <= within:  # nor where one is NaN
                both = f"{name} {loss:.6f}, {reference} {expected:.6f}"
                told.append(f"losses differ: {both}, over {within:g}")
    return told


def farthest(jobs: dict[str, list[Found]], groups: list[list[str]]) -> float | None:
    """The largest difference of losses that must agree; None where none were compared."""
    found = [first_losses(jobs, group) for group in groups]
    apart = [
        abs(loss - losses[0][1])
        for losses in found
        for name, loss in losses
        if name != losses[0][0]
    ]
    return max(apart, default=None)
