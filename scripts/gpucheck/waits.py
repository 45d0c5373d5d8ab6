"""How often a step makes the host wait for the device, by the line that does."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial

import torch

from gpucheck.place import Check, Place
from gpucheck.report import Figure, Found
from gpucheck.runs import STEPS
from gpucheck.training import CASES, Case, trained_on, windows

BOUNDS = {
    "lora": 1, "packed": 1, "accumulation": 1, "checkpointing": 1, "dropout": 1, "adalora": 1,
    "dora": 3, "plain": 3, "full": 3,
}  # fmt: skip
"""A step; tests/device/cases.py says what for, and holds the pretend device to the same. A GPU may
show more: a pretend one does not see that a copy to it waits, where its source is not pinned."""
SIGN = "called a synchronizing"
"""What torch's warning of set_sync_debug_mode says."""


@contextlib.contextmanager
def counted(place: Place) -> Iterator[Counter[str]]:
    """Counts waits while it lasts; what it gives is filled at the end."""
    found: Counter[str] = Counter()
    if place.pretend:
        from tests.device.pretend import COUNTS

        COUNTS.clear()
        yield found
        found.update(COUNTS.waits)
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found.update(
        f"{one.filename.rpartition('/loractl/')[2]}:{one.lineno}"
        for one in seen
        if SIGN in str(one.message)
    )


def count(place: Place, *, name: str) -> Found:
    """The waits of four steps that come after four others, which start things up."""
    chosen = CASES[name]
    chosen = Case(
        way=chosen.way.longer(2 * STEPS), packed=chosen.packed, accumulation=chosen.accumulation,
        architecture=chosen.architecture,
    )  # fmt: skip
    run = trained_on(place, chosen, torch.float32, place.device)
    rows = windows(
        place, run.model.config.vocab_size, packed=chosen.packed,
        accumulation=chosen.accumulation, total=2 * STEPS,
    )  # fmt: skip
    run.go(rows[:STEPS])
    with counted(place) as found:
        run.go(rows[STEPS:])
    figure = Figure("waits a step", found.total() / STEPS, BOUNDS[name])
    where = ", ".join(f"{line} {n / STEPS:g}" for line, n in found.most_common(5))
    return Found((figure,), where, {"lines": dict(found)})


CHECKS = tuple(Check(f"waits/{name}", partial(count, name=name), 3) for name in BOUNDS)
