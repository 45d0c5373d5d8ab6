"""SIGKILL at random times: the run that goes on is byte for byte the one that was never killed."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import CONFIGS, FULL, Warm, Whole, finish
from tests.sweeps import sampled

KILLS = 50 if FULL else 3


@pytest.mark.parametrize("name", sampled(CONFIGS, "dropout-accumulation-shuffle", "adalora"))
def test_a_run_killed_at_random_times_is_the_run_that_was_not(
    name: str, warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    expected, chance, kills, trial = whole(name), random.Random(name), 0, 0
    while kills < KILLS:
        run, trial = tmp_path / f"run-{trial}", trial + 1
        for _ in range(chance.randint(1, 3)):
            flags = ["--resume"] if run.exists() else []  # killed before it had made its directory
            process = warm.start("train", expected.config, "--out", run, *flags)
            code = process.kill_after(chance.uniform(0, 1.1 * expected.seconds))
            assert code in (0, -9), process.said
            kills += code == -9
        if not run.exists():
            assert warm.run("train", expected.config, "--out", run).code == 0
        finish(warm, expected, run)
