"""Time each op of loractl/ops against its naive twin: forward and backward, by turns, medians."""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench_report
import bench_run

if TYPE_CHECKING:
    from bench_twins import Twins
    from torch import Tensor

RESULTS = bench_run.ROOT / "build" / "bench_ops.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="part of a name")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a micro-batch (1024)")
    parser.add_argument("--rounds", type=int, default=7, help="times each is run (7)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file (%(default)s)")
    parser.add_argument("--write", type=Path, metavar="README.md", help="put the table there")


def measure(asked: argparse.Namespace) -> int:
    """Run what is asked for; 1 where an op and its twin do not agree."""
    import sys

    sys.path.insert(0, str(bench_run.ROOT))  # this checkout, whatever is installed
    import bench_machine
    import bench_twins
    import torch

    if asked.write:
        bench_report.around(asked.write, "ops-table")
    machine = bench_machine.describe()
    name = machine["dtype"] if asked.dtype == "auto" else asked.dtype
    dtype = getattr(torch, name)
    found: dict[str, Any] = {}
    for op, make in bench_twins.OPS.items():
        if not any(part in op for part in asked.only):
            continue
        torch.manual_seed(0)
        try:
            twins = make(dtype, asked.tokens)
        except ImportError as error:
            bench_report.say(f"{op}: not in this checkout ({error})")
            continue
        found[op] = run(twins, asked.rounds)
        one = found[op]
        bench_report.say(f"{op}: {one['fast_ms']:.2f} ms, its twin {one['naive_ms']:.2f} ms")
    about = {"machine": {**machine, "dtype": name}, "tokens": asked.tokens, "ops": found}
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    bench_report.write(asked.results, about)
    text = table(about)
    print(text)
    if asked.write:
        bench_report.put(asked.write, "ops-table", text)
    within = bench_twins.WITHIN[dtype]
    wrong = [op for op, one in found.items() if not one["off"] <= within]
    for op in wrong:
        bench_report.say(f"{op}: differs from its twin by {found[op]['off']:.1e}, over {within:g}")
    return 1 if wrong else 0


def run(twins: "Twins", rounds: int) -> dict[str, Any]:
    """Milliseconds of both, and the largest difference of what they give."""
    off = difference(twins.fast(twins.fresh()), twins.naive(twins.fresh()))
    taken: dict[str, list[float]] = {"fast": [], "naive": []}
    ways = [("fast", twins.fast), ("naive", twins.naive)]
    for _ in range(rounds):
        for way, work in ways:
            taken[way].append(_milliseconds(work, twins.fresh()))
        ways.reverse()  # neither always follows the other
    fast, naive = (statistics.median(times) for times in taken.values())
    return {"setting": twins.setting, "fast_ms": fast, "naive_ms": naive, "off": off}


def _milliseconds(work: Callable[[Any], Any], given: Any) -> float:
    began = time.perf_counter()
    work(given)
    return (time.perf_counter() - began) * 1e3


def difference(ours: "list[Tensor]", theirs: "list[Tensor]") -> float:
    """The largest difference of any output or gradient, over the largest value of the tensor."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape, (a.shape, b.shape)
        scale = max(1e-30, float(b.detach().float().abs().max()))
        worst = max(worst, float((a.detach().float() - b.detach().float()).abs().max()) / scale)
    return worst


def table(about: dict[str, Any]) -> str:
    machine = about["machine"]
    lines = [
        f"{about['tokens']} tokens, {machine['dtype']}, {bench_report.machine_line(machine)}:",
        "",
        "| op, forward and backward | setting | op | naive twin | faster by | difference |",
        "|---|---|---|---|---|---|",
    ]
    for op, one in about["ops"].items():
        cells = [
            op, one["setting"], f"{one['fast_ms']:.2f} ms", f"{one['naive_ms']:.2f} ms",
            f"{one['naive_ms'] / one['fast_ms']:.2f} x", f"{one['off']:.0e}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
