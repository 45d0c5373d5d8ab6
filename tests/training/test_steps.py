"""The training loop: a window's loss is divided once, and a loop cut anywhere goes on the same."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loractl.data.batches import BatchPlan, Epochs, windows
from loractl.errors import NumericError
from loractl.models.fast.trunk import Trunk
from loractl.models.forward import recompute_activations_
from loractl.models.objective import TokenLoss, loss_sum
from loractl.records import UNTRAINED, Batch, DataState
from loractl.training.state import TrainState
from loractl.training.steps import Step
from loractl.world import World
from tests.training.conftest import LENGTHS, Bench, Watcher, assert_near, rows


@pytest.mark.parametrize("packing", [False, True])
def test_batch_and_accumulation_may_trade_places(
    packing: bool, bench: Callable[..., Bench]
) -> None:
    losses, weights = [], []
    for batch_size, accumulation in ((8, 1), (4, 2), (2, 4), (1, 8)):
        made = bench()
        plan = BatchPlan(batch_size, accumulation, 128, packing)
        losses.append([step.loss for step in made.run(plan)])
        weights.append(made.weights())
    assert len(losses[0]) == 20 and losses[0][-1] != losses[0][0]
    for loss, weight in zip(losses[1:], weights[1:], strict=True):
        assert loss == pytest.approx(losses[0], abs=1e-6 * max(losses[0]))
        assert_near(weight, weights[0], 1e-5)


def test_the_loop_does_what_a_plain_loop_of_torch_does(bench: Callable[..., Bench]) -> None:
    plan = BatchPlan(4, 2, 128, packing=False)
    ours, plain = bench(clip=0.5), bench(clip=0.5)
    done = list(ours.run(plan))
    tensors = list(plain.parameters.values())
    optimizer = torch.optim.AdamW(tensors, lr=1.0, weight_decay=0.01)
    given = windows(Epochs(rows(), plan), DataState(0, 0))
    for step in range(20):
        lines = [line for batch in next(given)[0] for line in batch.lines]
        chosen = [example for line in lines for example in rows() if example.line == line]
        nll, n = torch.zeros(()), 0
        for example in chosen:
            logits = plain.model(torch.tensor([example.ids])).logits[0].float()
            targets = torch.tensor(example.labels)
            keep = targets[1:] != UNTRAINED
            nll = (
                nll - logits[:-1][keep].log_softmax(-1).gather(1, targets[1:][keep][:, None]).sum()
            )
            n += int(keep.sum())
        (nll / n).backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in tensors))  # type: ignore[union-attr, misc, arg-type]
        for p in tensors:
            p.grad = p.grad * min(1.0, 0.5 / float(norm))  # type: ignore[operator]
        lr = 2e-4 * (
            (step + 1) / 3 if step < 2 else 0.5 + 0.5 * math.cos(math.pi * (step - 2) / 18)
        )
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        assert done[step].loss == pytest.approx(nll.item() / n, rel=1e-6)
        assert done[step].grad_norm == pytest.approx(float(norm), rel=1e-4)
        assert done[step].lr == pytest.approx(lr) and done[step].trained_tokens == n
        assert done[step].tokens == sum(len(example.ids) for example in chosen)
    assert_near(ours.weights(), plain.weights(), 2e-6)


def test_state_is_up_to_date_at_each_yield_and_the_loop_ends_at_its_total(
    bench: Callable[..., Bench],
) -> None:
    made = bench(5)
    plan = BatchPlan(4, 1, 128, packing=False)
    tokens = 0
    for step in made.run(plan):
        tokens += step.tokens
        assert (made.state.step, made.state.tokens) == (step.step, tokens)
        assert step.epoch == made.state.data.epochs
    assert made.state.step == 5 and made.state.data == DataState(1, 8, 12)
    assert list(made.run(plan)) == []


@pytest.mark.parametrize("layers", ["transformers", "fast"])
def test_a_run_cut_anywhere_goes_on_bit_for_bit_with_dropout(
    layers: str, bench: Callable[..., Bench]
) -> None:
    def run(made: Bench) -> Iterator[Step]:
        trunk = Trunk(made.model)
        assert trunk.fallback_reason == ""
        return made.run(plan, TokenLoss(made.model, trunk=trunk if layers == "fast" else None))

    plan = BatchPlan(3, 2, 128, packing=True)
    whole = bench(6, dropout=0.3)
    list(run(whole))
    cut = bench(6, dropout=0.3)
    for step in run(cut):
        if step.step == 3:
            break
    torch.manual_seed(99)  # whatever else drew numbers in between
    again = bench(6, dropout=0.3)
    again.state = TrainState.restored(cut.state.snapshot())
    with torch.no_grad():
        for name, parameter in again.parameters.items():
            parameter.copy_(cut.parameters[name])
    again.optimizer.load_state_dict(cut.optimizer.state_dict())
    list(run(again))
    assert all(torch.equal(again.parameters[name], p) for name, p in whole.parameters.items())
    dry = bench(6)
    list(run(dry))
    assert any(not torch.equal(dry.parameters[name], p) for name, p in whole.parameters.items())


@pytest.mark.parametrize("seed", [0, 1, 2**62, 2**63 - 1])
def test_any_seed_that_the_config_takes_works(seed: int, bench: Callable[..., Bench]) -> None:
    made = bench(1, dropout=0.1)
    made.recipe = replace(made.recipe, seed=seed)
    assert len(list(made.run(BatchPlan(2, 1, 128, packing=False)))) == 1


def test_a_trained_tensor_that_the_model_does_not_use_stops_the_run(
    bench: Callable[..., Bench],
) -> None:
    made = bench()
    made.parameters["unused.A"] = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(NumericError, match=r"1 of 29 trained tensors got no gradient.* unused\.A"):
        list(made.run(BatchPlan(2, 1, 128, packing=False)))


def test_gradient_checkpointing_gives_the_same_bits(bench: Callable[..., Bench]) -> None:
    plan = BatchPlan(4, 1, 128, packing=True)
    plain, saving = bench(3, dropout=0.2), bench(3, dropout=0.2)
    recompute_activations_(saving.model)
    calls: list[int] = []
    saving.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    norms = [[step.grad_norm for step in made.run(plan)] for made in (plain, saving)]
    assert norms[0] == norms[1]
    assert_near(saving.weights(), plain.weights(), 0)
    assert len(calls) == 1 + 6, "once to find the head, then twice a step"


def test_the_penalty_is_added_once_a_step_and_not_to_the_loss_that_is_shown(
    bench: Callable[..., Bench],
) -> None:
    found = []
    for accumulation in (1, 4):
        made = bench(2, clip=1e9)
        watcher = Watcher(made.parameters)
        made.recipe = replace(made.recipe, ranks=watcher)
        done = list(made.run(BatchPlan(8 // accumulation, accumulation, 128, packing=False)))
        assert watcher.shown == [True, True]
        found.append((done[0].loss, done[0].grad_norm))
    plain = next(iter(bench(2, clip=1e9).run(BatchPlan(8, 1, 128, packing=False))))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][0] == pytest.approx(plain.loss, rel=1e-6)
    assert found[0][1] != pytest.approx(plain.grad_norm, rel=1e-3)


class Halves:
    """Twice the loss of a batch, over a count that no label tells."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def count(self, batch: Batch) -> float:
        return 0.5 * len(batch.lines)

    def groups(self, window: list[Batch]) -> list[list[Batch]]:
        return [[batch] for batch in window]

    def sums(self, group: list[Batch]) -> list[Tensor]:
        return [2 * loss_sum(self.model, batch)[0] for batch in group]


def test_a_step_divides_by_the_count_that_the_loss_gives(bench: Callable[..., Bench]) -> None:
    weights = {}
    for cut in ((12, 1), (3, 4)):
        made, plan = bench(1), BatchPlan(*cut, 128, packing=False)
        (window, _) = next(windows(Epochs(rows(), plan), DataState(0, 0)))
        with torch.no_grad():
            total = sum(float(loss_sum(made.model, batch)[0]) for batch in window)
        (step,) = made.run(plan, Halves(made.model))
        assert step.loss == pytest.approx(2 * total / (0.5 * len(LENGTHS)), rel=1e-6)
        assert step.trained_tokens == sum(row.n_trained for row in rows())
        weights[cut] = made.weights()
    assert_near(weights[12, 1], weights[3, 4], 1e-6)


def double(world: World, values: Sequence[float]) -> list[float]:
    """What two processes have together, when both hold the same."""
    return [world.size * value for value in values]


def test_counts_tokens_and_losses_are_added_up_over_the_processes(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = BatchPlan(4, 2, 128, packing=False)
    (alone,) = bench(1, clip=1e9).run(plan)
    monkeypatch.setattr("loractl.training.steps.sum_over_ranks", double)
    monkeypatch.setattr("loractl.training.steps.sum_gradients_", lambda world, parameters: None)
    made = bench(1, clip=1e9)
    made.recipe = replace(made.recipe, world=World(0, 2))
    (step,) = made.run(plan)
    assert step.loss == pytest.approx(alone.loss, rel=1e-6)
    assert (step.tokens, step.trained_tokens) == (2 * alone.tokens, 2 * alone.trained_tokens)
    assert (made.state.tokens, made.state.trained_tokens) == (step.tokens, step.trained_tokens)
    # What this process brings to the gradient of both, which are to be summed
    assert step.grad_norm == pytest.approx(alone.grad_norm / 2, rel=1e-5)
