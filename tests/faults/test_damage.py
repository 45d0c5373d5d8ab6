"""Damage of a checkpoint is seen: every flipped bit, every truncation, of every file."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.artifacts.run import checkpoint
from tests.faults.conftest import FULL, Warm, Whole, finish

FLIPS = 1000 if FULL else 200


@pytest.fixture
def saved(whole: Callable[..., Whole], tmp_path: Path) -> Path:
    """A copy of a checkpoint."""
    expected = whole()
    name = f"step-{expected.steps:06d}"
    return Path(shutil.copytree(expected.run / "checkpoints" / name, tmp_path / name))


def test_every_flipped_bit_is_seen_in_whatever_file(saved: Path) -> None:
    """Each file as often as any other: a flip in the manifest is rarer, but no less bad."""
    chance = random.Random(0)
    files = sorted(saved.iterdir())
    for number in range(FLIPS):
        path = files[number % len(files)]
        place, bit = chance.randrange(path.stat().st_size), 1 << chance.randrange(8)
        flip(path, place, bit)
        assert checkpoint.faults(saved), f"{path.name}: bit {bit} of byte {place}"
        flip(path, place, bit)
    assert checkpoint.faults(saved) == []


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ bit]))


def test_every_bit_of_a_manifest_counts(saved: Path) -> None:
    path = saved / checkpoint.MANIFEST
    whole = path.read_bytes()
    step = 1 if FULL else 7
    for place in range(0, len(whole), step):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            assert checkpoint.faults(saved), f"bit {bit} of byte {place}"


def test_every_truncation_is_seen(saved: Path) -> None:
    for path in sorted(saved.iterdir()):
        whole = path.read_bytes()
        lengths = range(len(whole)) if FULL else {0, 1, len(whole) // 2, len(whole) - 1}
        for length in sorted(lengths, reverse=True):
            os.truncate(path, length)
            assert checkpoint.faults(saved), f"{path.name} cut to {length}"
        path.write_bytes(whole)
    assert checkpoint.faults(saved) == []


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "optimizer.safetensors"])
def test_a_run_with_a_damaged_newest_checkpoint_names_it_and_goes_on_from_the_one_before(
    name: str, warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    expected = whole()
    run = shutil.copytree(expected.run, tmp_path / "run")
    shutil.rmtree(run / "adapter")
    bad = run / "checkpoints" / f"step-{expected.steps:06d}" / name
    flip(bad, bad.stat().st_size // 2, 16)
    process = warm.run("train", expected.config, "--out", run, "--resume")
    assert process.code == 0, process.said
    assert f"skipped a damaged checkpoint: {bad}" in process.said
    assert f"from {run / 'checkpoints' / f'step-{expected.steps - 2:06d}'}" in process.said
    finish(warm, expected, run)
