"""What processes exchange: nothing where there is one, sums where there are several."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loractl.training.distributed import sum_gradients_, sum_over_ranks
from loractl.world import ALONE, World

SUM = """
import sys
import torch.distributed as dist
from loractl.training.distributed import sum_over_ranks
from loractl.world import World

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
print(sum_over_ranks(World(rank, 2), [1.5 + rank, 2.0**40 + rank]))
dist.destroy_process_group()
"""


def test_one_process_has_its_own_values() -> None:
    assert sum_over_ranks(ALONE, [3, 0.1]) == [3, 0.1]


def test_two_processes_have_the_sums_of_both(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SUM, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert said == [str([4.0, 2.0**41 + 1])] * 2


def test_gradients_of_one_process_are_left_alone_and_those_of_several_refused() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    sum_gradients_(ALONE, [parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]
    with pytest.raises(NotImplementedError, match="training in 2 processes"):
        sum_gradients_(World(0, 2), [parameter])
