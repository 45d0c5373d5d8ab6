"""Speed and memory of `loractl train` against what others use, on this machine.

Each measurement is a process of its own, alone; the jobs of a workload are run in turn, repeat
after repeat, so that what else the machine does falls on all alike. A workload measured again, even
in part, replaces its record; the others stay.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bench import chart, report, run, store
from bench.jobs import LORACTL, Found, Setting, Workload
from bench.report import say
from bench.workloads import WORKLOADS

TITLE = "Speed"
ABOUT = """\
`loractl train` compared with a plain loop over transformers and PEFT, with full fine-tuning in
the same loop, and with TRL's `SFTTrainer`. Every run is a separate process; runs take turns, and
figures are medians. Only real tokens count (no padding), from the third step on. The limit is
the speed of the frozen base's matrix products alone: forward, for the gradients of their inputs,
and the output head on the trained tokens. It is given for torch's products, which the third
column is relative to, and for loractl's own where it has some for the processor. On `chats`,
loractl computes the system prompt that all rows share only once per step."""
CURVES = run.ROOT / ".github" / "curves.png"
DEFAULT = ["chats", "256x4"]
EQUAL = {"float32": 1e-4, "bfloat16": 0.03}
"""How far the losses of one step may lie apart, in nats."""


def section(records: Mapping[str, Found]) -> str:
    return report.by_machine(records, report.workloads)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--data", type=Path, required=True, help="JSONL of chats")
    parser.add_argument("--steps", type=int, default=6, help="steps of loractl (6)")
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
    parser.add_argument("--plot", type=Path, default=CURVES, help="PNG of curves (%(default)s)")


def measure(asked: argparse.Namespace) -> int:
    """Run what is asked for; 1 where a job failed or losses that must agree do not."""
    chosen = wanted_jobs(asked.only)
    is_good, records = True, {}
    with tempfile.TemporaryDirectory(prefix="loractl-bench-") as name:
        setting = _setting(asked, Path(name))
        machine = setting.module("machine")
        slow = machine["dtype"] == "float32"
        dtype = machine["dtype"] if asked.dtype == "auto" else asked.dtype
        setting = replace(setting, dtype=dtype, bf16_is_slow=slow)
        machine |= {"dtype": dtype}
        say(report.machine_line(machine))
        for workload_name, parts in chosen.items():
            record = _measured(workload_name, parts, setting, machine, asked)
            records[workload_name] = record
            failed = any("failed" in one for runs in record["jobs"].values() for one in runs)
            is_good = is_good and not failed and not record["unequal"]
    print(section(records))
    return 0 if is_good else 1


def _measured(
    name: str, parts: list[str], setting: Setting, machine: Found, asked: argparse.Namespace
) -> Found:
    """Measure a workload; its record, which is kept after each job."""
    began = time.perf_counter()
    workload = WORKLOADS[name](setting, name)
    record: Found = {
        "title": workload.title,
        "model": setting.model.name,
        "machine": machine,
        "asked": {"steps": asked.steps, "repeats": asked.repeats, "batch": asked.batch},
        "jobs": {},
        "unequal": [],
        "apart": None,
    }
    whole: dict[str, list[Found]] = {}
    for text in _run(workload, whole, parts, asked.repeats):
        say(f"{name}: {text}")
        record["jobs"] = {job: [run.summary(one) for one in runs] for job, runs in whole.items()}
        store.keep(asked.results, "speed", name, record)
    record["unequal"] = unequal(whole, workload.same_losses, EQUAL[setting.dtype])
    record["apart"] = farthest(whole, workload.same_losses)
    record["minutes"] = round((time.perf_counter() - began) / 60, 1)
    for text in record["unequal"]:
        say(f"{name}: {text}")
    if name == "curves" and all("losses" in runs[0] for runs in whole.values()) and len(whole) == 2:
        ours, naive = (whole[job][0]["losses"] for job in (LORACTL, "naive"))
        record["curves"] = report.curves_of(ours, naive)
        chart.curves(ours, naive, setting.dtype, asked.plot)
        say(f"{name}: {asked.plot}")
    store.keep(asked.results, "speed", name, record)
    return record


def _setting(asked: argparse.Namespace, place: Path) -> Setting:
    for path in (asked.model / "config.json", asked.data):
        if not path.is_file():
            sys.exit(f"error: {path}: no such file")
    return Setting(
        model=asked.model.resolve(), data=asked.data.resolve(), dtype="", place=place,
        steps=asked.steps, peer_steps=asked.peer_steps, batch=asked.batch,
    )  # fmt: skip


def wanted_jobs(only: list[str]) -> dict[str, list[str]]:
    """Workload -> parts of the names of its jobs that are wanted; [] for all of them."""
    if only == ["all"]:
        return {name: [] for name in WORKLOADS}
    chosen: dict[str, list[str]] = {}
    for text in only:
        name, _, part = text.partition("/")
        if name not in WORKLOADS:
            report.refuse_only(text, WORKLOADS)
        chosen.setdefault(name, [])
        chosen[name] += [part] if part else []
    return chosen


def _run(
    workload: Workload, jobs: dict[str, list[Found]], parts: list[str], repeats: int
) -> Iterator[str]:
    """Run the jobs in turn, repeat after repeat; yield a line after each. A fault ends no other."""
    for repeat in range(repeats):
        for job in workload.jobs:
            if (job.once and repeat) or (parts and not any(part in job.name for part in parts)):
                continue
            runs = jobs.setdefault(job.name, [])
            try:
                runs.append(job.run(repeat))
            except run.Failed as error:
                runs.append({"failed": str(error)})
            yield f"{repeat + 1}/{repeats} {job.name}: {report.short(run.summary(runs[-1]))}"


def first_losses(jobs: dict[str, list[Found]], group: list[str]) -> list[tuple[str, float]]:
    return [
        (name, one["losses"][0]) for name in group for one in jobs.get(name, []) if "losses" in one
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
