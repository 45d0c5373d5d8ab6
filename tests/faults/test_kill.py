"""SIGKILL at random times: the run that goes on is byte for byte the one that was never killed."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.config.optimizers import OPTIMIZERS as TABLE
from tests.faults.conftest import CONFIGS, FULL, HELD, OPTIMIZERS, Warm, Whole, finish
from tests.sweeps import sampled, slow

KILLS = 50 if FULL else 3


@pytest.mark.parametrize("name", sampled(CONFIGS, "dropout-accumulation-shuffle", "adalora"))
def test_a_run_killed_at_random_times_is_the_run_that_was_not(
    name: str, warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    kill_and_finish(warm, whole(name), tmp_path, random.Random(name), KILLS)


@pytest.mark.parametrize(
    ("name", "kills"), [("lion", 2), *(slow(name, 20 if FULL else 4) for name in OPTIMIZERS)]
)
def test_a_killed_run_with_another_optimizer_is_the_run_that_was_not(
    name: str, kills: int, warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    if TABLE[name].package:
        warm.ask(do="load", module="bitsandbytes")  # seconds, in each process otherwise
    kill_and_finish(warm, whole(name), tmp_path, random.Random(name), kills)


@pytest.mark.parametrize("name", sampled(HELD, "nf4-offload"))
def test_a_killed_run_on_a_packed_or_streamed_base_is_the_run_that_was_not(
    name: str, warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    kill_and_finish(warm, whole(name), tmp_path, random.Random(name), 20 if FULL else 3)


def kill_and_finish(
    warm: Warm, expected: Whole, directory: Path, chance: random.Random, least: int
) -> None:
    """Kill runs at random times, `least` times in all, and compare what each comes to."""
    kills = trial = 0
    while kills < least:
        run, trial = directory / f"run-{trial}", trial + 1
        for _ in range(chance.randint(1, 3)):
            flags = ["--resume"] if run.exists() else []  # killed before it had made its directory
            process = warm.start("train", expected.config, "--out", run, *flags)
            code = process.kill_after(chance.uniform(0, 1.1 * expected.seconds))
            assert code in (0, -9), process.said
            kills += code == -9
        if not run.exists():
            assert warm.run("train", expected.config, "--out", run).code == 0
        finish(warm, expected, run)
