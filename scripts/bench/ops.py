"""Time each op of loractl/ops against its naive twin: forward and backward, by turns, medians."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bench import report, store

if TYPE_CHECKING:
    from torch import Tensor

    from bench.twins import Twins

TITLE = "Single operations"
ABOUT = """\
Each operation of `loractl/ops`, forward and backward, compared with the plain formula that it
stands for. The two take turns, and times are medians. The difference is the largest in any
output or gradient, relative to the largest value of that tensor."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="part of a name")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a micro-batch (1024)")
    parser.add_argument("--rounds", type=int, default=7, help="times each is run (7)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")


def measure(asked: argparse.Namespace) -> int:
    """Run what is asked for; 1 where an op and its twin do not agree."""
    import torch

    from bench import machine, twins

    wanted = report.chosen(twins.OPS, asked.only)
    about = machine.describe()
    about |= {"dtype": about["dtype"] if asked.dtype == "auto" else asked.dtype}
    dtype = getattr(torch, about["dtype"])
    found: dict[str, Any] = {}
    for op in wanted:
        torch.manual_seed(0)
        try:
            pair = twins.OPS[op](dtype, asked.tokens)
        except ImportError as error:
            report.say(f"{op}: not in this checkout ({error})")
            continue
        one = {"machine": about, "tokens": asked.tokens, **run(pair, asked.rounds)}
        found[op] = one
        store.keep(asked.results, "ops", op, one)
        report.say(f"{op}: {one['loractl_ms']:.2f} ms, plain {one['plain_ms']:.2f} ms")
    print(section(found))
    within = twins.WITHIN[dtype]
    wrong = [op for op, one in found.items() if not one["off"] <= within]
    for op in wrong:
        report.say(f"{op}: differs from its twin by {found[op]['off']:.1e}, over {within:g}")
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
    return {"setting": twins.setting, "loractl_ms": fast, "plain_ms": naive, "off": off}


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


def section(records: Mapping[str, dict[str, Any]]) -> str:
    return report.by_machine(records, table)


def table(records: Mapping[str, dict[str, Any]]) -> str:
    rows = [
        [
            op, one["setting"], str(one["tokens"]), f"{one['loractl_ms']:.2f} ms",
            f"{one['plain_ms']:.2f} ms", f"{one['plain_ms'] / one['loractl_ms']:.2f}x",
            f"{one['off']:.0e}",
        ]
        for op, one in records.items()
    ]  # fmt: skip
    head = ["operation", "setting", "tokens", "loractl", "plain formula", "speedup"]
    return report.markdown([*head, "difference"], rows)
