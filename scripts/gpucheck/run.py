"""Runs the checks in order of value until the time is up."""

import argparse
import contextlib
import faulthandler
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.report import FAILED, LEFT_OUT, OK, SKIPPED, Line, Report, SkippedError

if TYPE_CHECKING:
    from gpucheck.place import Check, Place

SUBJECTS = (
    "machine", "attention", "ops", "training", "resume", "waits", "memory", "speed",
)  # fmt: skip
"""In order of value; each file has its CHECKS."""
GRACE = 60
"""Seconds after the limit at which a process that hangs in the device is ended."""
MESSAGE, PLACES = 300, 4
"""Characters of an exception's message, and places of its traceback, that are shown."""
Clock = Callable[[], float]


def main(argv: Sequence[str]) -> int:
    asked = _parser().parse_args(argv)
    began = time.monotonic()
    faulthandler.dump_traceback_later(asked.until + GRACE, exit=True)
    device: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if asked.pretend:
        from tests.device import pretend  # before torch

        device = pretend.device()
    import torch

    from gpucheck.machine import versions
    from gpucheck.place import Place

    with device, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            print("no CUDA device is visible to torch; --pretend runs the checks without one")
            return 2
        place = Place(torch.device("cuda", 0), asked.pretend)
        report = Report(asked.out, versions(place))
        chosen = choose(checks(), asked.only)
        if not chosen:
            print(f"no check is named {' or '.join(asked.only)}; subjects: {', '.join(SUBJECTS)}")
            return 2
        run_checks(chosen, place, report, until=began + asked.until)
    faulthandler.cancel_dump_traceback_later()
    return report.finish()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu",
        description="Check loractl on this machine's GPU. Exit status 1 if a check failed.",
    )
    add, subjects = parser.add_argument, ", ".join(SUBJECTS)
    add("--until", type=float, default=360, metavar="SECONDS",
        help="start no check that would end later (%(default)s)")  # fmt: skip
    add("--only", nargs="+", default=[], metavar="NAME",
        help=f"a subject, or subject/case; subjects: {subjects}")  # fmt: skip
    add("--out", type=Path, default=Path("build/gpu.json"), metavar="FILE.json",
        help="what was found (%(default)s)")  # fmt: skip
    add("--pretend", action="store_true",
        help="on a pretend device, with tiny models: tries the checks themselves")  # fmt: skip
    return parser


def checks() -> "list[Check]":
    return [one for name in SUBJECTS for one in import_module(f"gpucheck.{name}").CHECKS]


def choose(every: "Sequence[Check]", names: Sequence[str]) -> "list[Check]":
    """The checks of these names or of these subjects; all without names."""
    return [
        one for one in every
        if not names or any(one.name == name or one.name.startswith(f"{name}/") for name in names)
    ]  # fmt: skip


def run_checks(
    every: "Sequence[Check]", place: "Place", report: Report, *, until: float,
    clock: Clock = time.monotonic,
) -> None:  # fmt: skip
    """Run each check that fits into the time left; what one raises is its own failure."""
    lost = ""
    for check in every:
        left = until - clock()
        if lost or (check.seconds > left and not place.pretend) or left <= 0:
            why = lost or f"takes about {check.seconds:.0f} s, and {max(0.0, left):.0f} s are left"
            report.add(Line(check.name, LEFT_OUT, 0.0, why))
            continue
        began = clock()
        line = _run(check, place, lambda began=began: clock() - began)
        report.add(line)
        lost = place.clean_()


def _run(check: "Check", place: "Place", elapsed: Clock) -> Line:
    try:
        found = check.run(place)
        place.settle()  # an error of a kernel shows now, and not in the next check
    except SkippedError as why:
        return Line(check.name, SKIPPED, elapsed(), str(why))
    except Exception as error:
        return Line(check.name, FAILED, elapsed(), _end_of(error))
    return Line(check.name, OK if found.holds else FAILED, elapsed(), str(found), found)


def _end_of(error: Exception) -> str:
    """An exception on one line: its message, and the last places it went through. Only text: a
    traceback would keep the tensors of its frames alive."""
    message = " ".join(str(error).split())
    said = f"{type(error).__name__}: {message[:MESSAGE]}{'...' if len(message) > MESSAGE else ''}"
    places = traceback.extract_tb(error.__traceback__)[-PLACES:]
    lines = [f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in reversed(places)]
    return " < ".join([said, *lines])
