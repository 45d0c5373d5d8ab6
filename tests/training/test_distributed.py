"""What processes exchange: nothing where there is one, sums where there are several."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loractl.training.distributed import sum_gradients_, sum_over_ranks
from loractl.world import ALONE

SUM = """
import sys
import torch.distributed as dist
from loractl.training.distributed import sum_over_ranks
from loractl.world import World

rank, size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
print(sum_over_ranks(World(rank, size), [1.5 + rank, 2.0**40 + rank]))
dist.destroy_process_group()
"""


def test_one_process_has_its_own_values() -> None:
    assert sum_over_ranks(ALONE, [3, 0.1]) == [3, 0.1]


def test_two_processes_have_the_sums_of_both(tmp_path: Path) -> None:
    said = run_processes(SUM, 2, tmp_path / "store")
    assert said == [str([4.0, 2.0**41 + 1])] * 2


TRAIN = """
import json, sys
import torch, torch.distributed as dist
from torch import nn
from loractl.records import UNTRAINED, Batch, DataState
from loractl.training.optim import LearningRate, Rates, build_optimizer
from loractl.training.state import TrainState
from loractl.training.steps import Recipe, steps
from loractl.world import World

rank, size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)


def batch(line):
    ids = torch.arange(line, line + line % 4 + 2)[None] % 9  # rows of other lengths
    return Batch(ids, ids, torch.arange(ids.shape[1])[None], ids.numel(), (line,))


class Loss:
    def __init__(self, model):
        self.model = model

    def count(self, batch):
        return batch.n_trained

    def groups(self, window):
        return [[batch] for batch in window]

    def sums(self, group):
        [batch] = group
        logits = self.model(batch.input_ids)[:, :-1]
        return [nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum"
        )]


torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
parameters = dict(model.named_parameters())
optimizer = build_optimizer("adamw", parameters, Rates(1e-2, 0.0))
# Each step has three rows, and the last step one: a process of two then has none.
lines = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10]]
windows = [
    ([batch(line) for line in World(rank, size).share_of(step)], DataState(0, n))
    for n, step in enumerate(lines)
]
recipe = Recipe(
    LearningRate(1e-2, "constant", 0.0, len(lines)), 1.0, 0, torch.device("cpu"),
    torch.amp.GradScaler("cpu", enabled=False), world=World(rank, size),
)
done = steps(Loss(model), parameters, optimizer, windows, TrainState(), recipe)
found = [[step.loss, step.grad_norm, step.trained_tokens] for step in done]
weights = {name: one.flatten().tolist() for name, one in parameters.items()}
print(json.dumps([found, weights]))
if size > 1:
    dist.destroy_process_group()
"""


def run_processes(script: str, size: int, store: Path) -> list[str]:
    """What each of the processes says that run a script, given rank, size and a meeting place."""
    argv = [sys.executable, "-c", script]
    runs = [
        subprocess.Popen(
            [*argv, str(rank), str(size), str(store)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(size)
    ]
    said = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert all(run.returncode == 0 for run in runs)
    return said


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    (alone,) = [json.loads(text) for text in run_processes(TRAIN, 1, tmp_path / "one")]
    both = [json.loads(text) for text in run_processes(TRAIN, 2, tmp_path / "two")]
    assert both[0] == both[1]
    for found, expected in zip(both[0][0], alone[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    for name, values in alone[1].items():
        assert both[0][1][name] == pytest.approx(values, abs=1e-5)


def test_gradients_of_one_process_are_left_alone() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    sum_gradients_(ALONE, [parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]


UNREACHED = """
import sys
import torch, torch.distributed as dist
from loractl.training.distributed import sum_gradients_
from loractl.world import World

rank, size = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=size)
lost, half, full = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
full.grad = torch.tensor([1.0, 2.0])
if rank == 0:
    half.grad = torch.tensor([3.0, 4.0])
sum_gradients_(World(rank, size), [lost, half, full])
print(lost.grad, half.grad.tolist(), full.grad.tolist())
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_what_no_process_reaches_keeps_no_gradient(tmp_path: Path) -> None:
    said = run_processes(UNREACHED, 2, tmp_path / "store")
    assert said == ["None [3.0, 4.0] [2.0, 4.0]"] * 2
