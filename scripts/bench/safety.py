#!/usr/bin/env python3
"""Which share of a run goes into safety: `scripts/bench_safety CONFIG [--set k=v ...] --out DIR`.

Trains as the config says, and counts the seconds spent in syncing, hashing and verifying files, in
the hash of the base, in the lock, and in the look at every trained value before a save. What a save
takes beside that, writing the tensors, would be spent without any safety.
"""

import functools
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

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


def main(argv: list[str]) -> int:
    from loractl.artifacts import files
    from loractl.artifacts.run import checkpoint
    from loractl.artifacts.run.lock import RunLock
    from loractl.cli import main as cli_main
    from loractl.engine import capacity
    from loractl.engine import train as training
    from loractl.models import load

    for owner, name, what in (
        (files, "sync", "fsync"),
        (files, "sha256", "hashes of checkpoints"),
        (checkpoint, "faults", "verifying checkpoints"),
        (checkpoint, "seal", "hashes of checkpoints"),
        (load, "fingerprint", "hash of the base"),
        (RunLock, "__enter__", "lock"),
        (RunLock, "__exit__", "lock"),
        (capacity, "require", "free space"),
    ):
        setattr(owner, name, counted(what, getattr(owner, name)))
    whole: Counter[str] = Counter()
    for name in ("train", "prepare"):
        function = getattr(training, name)

        def timed(
            *args: Any, name: str = name, function: Callable[..., Any] = function, **options: Any
        ) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                whole[name] += time.perf_counter() - began

        setattr(training, name, timed)
    save = training._Run._save_checkpoint

    def saved(self: Any) -> None:
        began = time.perf_counter()
        save(self)
        whole["saves"] += time.perf_counter() - began

    training._Run._save_checkpoint = saved  # type: ignore[method-assign]
    code = cli_main.main(["train", *argv])
    total, safety = whole["train"], sum(SECONDS.values())
    print(f"training {total:.2f} s, loading {whole['prepare']:.2f} s, saves {whole['saves']:.2f} s")
    for what, seconds in SECONDS.most_common():
        print(f"  {seconds:8.3f} s  {seconds / total:7.3%}  {what}")
    print(f"safety {safety:.3f} s: {safety / total:.2%} of training")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
