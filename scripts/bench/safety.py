"""What share of a run goes into safety.

Trains as the config says, and counts the seconds spent in syncing, hashing and verifying files, in
the hash of the base, in the lock, and in the look at every trained value before a save. What a save
takes beside that, writing the tensors, would be spent without any safety.
"""

import argparse
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bench import machine, report, store

TITLE = "Safety"
ABOUT = """\
The share of a run spent syncing, hashing and verifying files. Writing the tensors of a
checkpoint is not included."""
SECONDS: Counter[str] = Counter()
_OPEN: list[str] = []


def counted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose time goes to `what` unless it is called from another of these."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        if _OPEN:
            return function(*args, **options)
        _OPEN.append(what)
        began = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            SECONDS[what] += time.perf_counter() - began
            _OPEN.pop()

    return run


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="as `loractl train` takes it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="run directory, which must be new")
    parser.add_argument("--name", help="the record's name (the config's)")


def measure(asked: argparse.Namespace) -> int:
    from loractl.cli import main as cli_main

    whole = watched()
    changes = [word for change in asked.set for word in ("--set", change)]
    code = cli_main.main(["train", asked.config, *changes, "--out", str(asked.out)])
    if code:
        return code
    name, about, ran = asked.name or Path(asked.config).stem, machine.describe(), run_of(asked.out)
    record = {
        "machine": about | {"dtype": about["dtype"] if ran["dtype"] == "auto" else ran["dtype"]},
        "run": ran,
        "seconds": {key: round(whole[key], 3) for key in ("train", "prepare", "saves")},
        "safety": {what: round(taken, 4) for what, taken in SECONDS.most_common()},
    }
    store.keep(asked.results, "safety", name, record)
    print(section({name: record}))
    return 0


def watched() -> Counter[str]:
    """Count in SECONDS what safety takes from now on, and in the result what the whole does."""
    from loractl.artifacts import files
    from loractl.artifacts.run import checkpoint
    from loractl.artifacts.run.lock import RunLock
    from loractl.engine import capacity, session
    from loractl.engine import train as training

    for owner, name, what in (
        (files, "sync", "fsync"),
        (checkpoint, "faults", "verifying checkpoints"),
        (checkpoint, "seal", "hashes of checkpoints"),
        (session, "fingerprint", "hash of the base"),
        (RunLock, "__enter__", "lock"),
        (RunLock, "__exit__", "lock"),
        (capacity, "require", "free space"),
    ):
        setattr(owner, name, counted(what, getattr(owner, name)))
    whole: Counter[str] = Counter()
    for owner, name, what in (
        (training, "train", "train"),
        (training, "prepare", "prepare"),
        (training._Run, "_save_checkpoint", "saves"),
    ):
        setattr(owner, name, timed(what, getattr(owner, name), whole))
    return whole


def timed(what: str, function: Callable[..., Any], whole: Counter[str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            whole[what] += time.perf_counter() - began

    return run


def run_of(out: Path) -> dict[str, Any]:
    """What the run's own files say of it."""
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    last = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return {
        "model": Path(config["model"]["name_or_path"]).name,
        "dtype": config["model"]["dtype"],
        "method": config["method"],
        "rank": config["lora"]["rank"] if config["method"] != "full" else None,
        "steps": json.loads(last)["step"],
        "save_every": config["train"]["save_every"],
    }


def section(records: Mapping[str, dict[str, Any]]) -> str:
    return report.by_machine(records, table)


def table(records: Mapping[str, dict[str, Any]]) -> str:
    head = ["run", "model", "method", "steps", "saved every", "training", "safety", "share"]
    head.append("most of it")
    return report.markdown(head, (_row(name, record) for name, record in records.items()))


def _row(name: str, record: dict[str, Any]) -> list[str]:
    found, total, safety = record["run"], record["seconds"]["train"], record["safety"]
    spent = sum(safety.values())
    what, most = max(safety.items(), key=lambda one: one[1])
    return [
        name,
        found["model"],
        found["method"] + (f", rank {found['rank']}" if found["rank"] else ""),
        str(found["steps"]),
        "step" if found["save_every"] == 1 else f"{found['save_every']} steps",
        f"{total:.0f} s",
        f"{spent:.2f} s",
        f"{spent / total:.2%}",
        f"{what}, {most:.2f} s" if len(safety) > 1 else "",
    ]
