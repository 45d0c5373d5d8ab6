"""Weights of tokens in the training loop: one mean by weight a step, however the step is cut."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loractl.data.batches import BatchPlan, Epochs, windows
from loractl.models.fast.trunk import Trunk
from loractl.models.objective import TokenLoss
from loractl.records import UNTRAINED, Example
from loractl.training.steps import Step, steps
from tests.training.conftest import Bench, assert_near, rows
from tests.training.test_distributed import run_processes

SOME = (0.5, 1.0, 0.1, 3.0)


def weighted(weights: tuple[float, ...] = SOME) -> list[Example]:
    """The rows of conftest, in each of which all trained tokens have one of the weights."""
    return [
        replace(
            one,
            weights=[
                0.0 if label == UNTRAINED else weights[one.line % len(weights)]
                for label in one.labels
            ],
        )
        for one in rows()
    ]


def run(made: Bench, plan: BatchPlan, examples: list[Example], *, fast: bool) -> Iterator[Step]:
    trunk = Trunk(made.model) if fast else None
    assert trunk is None or trunk.fallback_reason == ""
    given = windows(Epochs(examples, plan), made.state.data)
    loss = TokenLoss(made.model, trunk=trunk)
    return steps(loss, made.parameters, made.optimizer, given, made.state, made.recipe)


@pytest.mark.parametrize("fast", [False, True])
def test_neither_accumulation_nor_packing_changes_a_weighted_step(
    fast: bool, bench: Callable[..., Bench]
) -> None:
    found, weights = [], []
    for cut in ((12, 1, False), (4, 3, False), (1, 12, False), (12, 1, True), (2, 6, True)):
        made = bench(5)
        done = list(run(made, BatchPlan(*cut[:2], 128, cut[2]), weighted(), fast=fast))
        found.append([step.loss for step in done])
        weights.append(made.weights())
        assert {step.trained_tokens for step in done} == {sum(one.n_trained for one in rows())}
    for loss, weight in zip(found[1:], weights[1:], strict=True):
        assert loss == pytest.approx(found[0], rel=1e-6)
        assert_near(weight, weights[0], 1e-5)


def test_a_weighted_step_has_the_loss_of_the_formula(bench: Callable[..., Bench]) -> None:
    made = bench(1)
    total = weight = 0.0
    for one in weighted():
        with torch.no_grad():
            logits = made.model(torch.tensor([one.ids])).logits[0].double().log_softmax(-1)
        for place, label in enumerate(one.labels):
            if place and label != UNTRAINED:
                assert one.weights is not None
                total -= one.weights[place] * float(logits[place - 1, label])
                weight += one.weights[place]
    for fast in (False, True):
        made = bench(1)
        (step,) = run(made, BatchPlan(3, 4, 128, packing=False), weighted(), fast=fast)
        assert step.loss == pytest.approx(total / weight, rel=1e-6)


def test_weights_count_by_their_ratio_alone(bench: Callable[..., Bench]) -> None:
    plan = BatchPlan(4, 1, 128, packing=False)
    found = []
    for examples in (rows(), weighted((1.0,)), weighted((2.0,))):
        made = bench(6)
        losses = [step.loss for step in run(made, plan, examples, fast=True)]
        found.append((losses, made.weights()))
    assert found[0][0] == found[1][0] and found[0][1].keys() == found[1][1].keys()
    assert found[2][0] == pytest.approx(found[0][0], rel=1e-6)
    assert_near(found[1][1], found[0][1], 0)
    assert_near(found[2][1], found[0][1], 1e-6)
    made = bench(6)
    losses = [step.loss for step in run(made, plan, weighted(), fast=True)]
    assert losses != pytest.approx(found[0][0], rel=1e-3), "other ratios are another loss"


def test_tokens_of_weight_0_are_as_untrained_ones(bench: Callable[..., Bench]) -> None:
    plan = BatchPlan(6, 2, 128, packing=False)
    untrained, zeros = rows(), rows()
    for number in range(0, len(untrained), 3):
        nothing = [0] * len(untrained[number].ids)
        untrained[number] = replace(untrained[number], labels=[UNTRAINED for _ in nothing])
        zeros[number] = replace(zeros[number], weights=[0.0 for _ in nothing])
    found = []
    for examples in (untrained, zeros):
        made = bench(4)
        losses = [step.loss for step in run(made, plan, examples, fast=True)]
        found.append((losses, made.weights()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert_near(found[1][1], found[0][1], 1e-6)


TRAIN = """
import json, sys
import torch, torch.distributed as dist
from transformers import AutoModelForCausalLM
from loractl.data.batches import BatchPlan, Epochs, windows
from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.models.objective import TokenLoss
from loractl.records import UNTRAINED, DataState, Example
from loractl.training.optim import LearningRate, Rates, build_optimizer
from loractl.training.state import TrainState
from loractl.training.steps import Recipe, steps
from loractl.world import World

rank, size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{{store}}", rank=rank, world_size=size)
rows = []
for line in range(1, 10):  # windows of 4 rows: the last has one, and the second process none
    ids = [(7 * line + 3 * n) % 300 for n in range(4 + line % 5)]
    weights = None if line % 4 == 0 else [0.0, 0.0] + [0.3 * line] * (len(ids) - 2)
    rows.append(Example(ids, [UNTRAINED] * 2 + ids[2:], line, weights=weights))
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained({base!r}, dtype=torch.float32)
ranks = resolve(RankSpec(rank=4, alpha=8), adaptable(model), head="lm_head")
parameters = {{}}
for name, layer in inject_(model, ranks).items():
    parameters |= {{f"{{name}}.A": layer.A, f"{{name}}.B": layer.B}}
recipe = Recipe(
    LearningRate(1e-3, "constant", 0.0, 3), 1.0, 0, torch.device("cpu"),
    torch.amp.GradScaler("cpu", enabled=False), world=World(rank, size),
)
given = windows(
    Epochs(rows, BatchPlan(2, 2, 64, packing=False)), DataState(0, 0), World(rank, size)
)
optimizer = build_optimizer("adamw", parameters, Rates(1e-3, 0.0))
done = steps(TokenLoss(model), parameters, optimizer, given, TrainState(), recipe)
found = [[step.loss, step.grad_norm, step.trained_tokens] for step in done]
print(json.dumps([found, [float(p.double().sum()) for p in parameters.values()]]))
if size > 1:
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_take_the_weighted_steps_of_one(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    script = TRAIN.format(base=str(base("llama")))
    (alone,) = [json.loads(text) for text in run_processes(script, 1, tmp_path / "one")]
    both = [json.loads(text) for text in run_processes(script, 2, tmp_path / "two")]
    assert both[0] == both[1] and len(alone[0]) == 3
    for found, expected in zip(both[0][0], alone[0], strict=True):
        assert found[0] == pytest.approx(expected[0], rel=1e-6)
        assert found == pytest.approx(expected, rel=1e-5)
    assert both[0][1] == pytest.approx(alone[1], abs=1e-5)


def test_a_step_without_weight_is_ours_to_break(bench: Callable[..., Bench]) -> None:
    nothing = [replace(one, labels=[UNTRAINED] * len(one.ids)) for one in rows()]
    with pytest.raises(AssertionError, match=r"\(0, 0\)"):
        next(run(bench(1), BatchPlan(4, 1, 128, packing=False), nothing, fast=False))
