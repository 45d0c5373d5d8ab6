"""Two processes make the run of one: the same numbers, written and told once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import rows_of

Config = Callable[..., Path]

# What `train` does, in a process that has been told which of how many it is.
TRAIN = """
import sys
from pathlib import Path
import torch.distributed as dist
from loractl.artifacts.run.directory import RunDir
from loractl.config import loader
from loractl.engine.train import prepare, train
from loractl.signals import StopRequest
from loractl.world import World

rank, size, config, out, store = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
loaded = loader.load(Path(config), [f"out={out}"])
run = prepare(loaded, RunDir(Path(out)), World(rank, size), resume=False)
if rank == 0:
    Path(out).mkdir()
with StopRequest() as stop:
    train(run, stop, again="")
if size > 1:
    dist.destroy_process_group()
"""


def run_processes(config: Path, out: Path, size: int) -> list[str]:
    """Train in so many processes; returns what each told."""
    argv = [str(config), str(out), str(out.with_suffix(".store"))]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(rank), str(size), *argv],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [run.communicate(timeout=300)[1] for run in runs]
    assert all(run.returncode == 0 for run in runs), said
    return said


def numbers_of(run: Path) -> list[dict[str, Any]]:
    """The rows of the log, without what the clock and the machine decide."""
    beside = ("tokens_per_s", "peak_memory_bytes")
    return [{k: v for k, v in row.items() if k not in beside} for row in rows_of(run)]


@pytest.mark.slow  # tests/training/test_distributed.py has the loop of two in the default tier
@pytest.mark.parametrize("packing", ["true", "false"])
def test_two_processes_make_the_run_of_one(
    config_file: Config, tmp_path: Path, packing: str
) -> None:
    config = config_file(
        f"data: {{eval: 0.3, packing: {packing}, max_length: 96}}",
        # Rows that do not divide among two, and evaluations and checkpoints on the way
        "train: {batch_size: 3, gradient_accumulation: 2, eval_every: 2, learning_rate: 1e-3}",
    )
    alone, both = tmp_path / "alone", tmp_path / "both"
    run_processes(config, alone, 1)
    first, second = run_processes(config, both, 2)
    assert "loss" in first and "loss" not in second and "wrote" not in second
    found, expected = numbers_of(both), numbers_of(alone)
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert row.keys() == wanted.keys()
        for name in ("step", "tokens", "trained_tokens"):
            assert row.get(name) == wanted.get(name)
        for name in row.keys() - {"step"}:
            assert row[name] == pytest.approx(wanted[name], rel=1e-5), name
    paths = {path.relative_to(alone) for path in alone.rglob("*") if path.is_file()}
    assert {path.relative_to(both) for path in both.rglob("*") if path.is_file()} == paths
    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (both, alone)]
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=0, atol=1e-4)
    assert json.loads((both / "data.json").read_text()) == json.loads(
        (alone / "data.json").read_text()
    )
