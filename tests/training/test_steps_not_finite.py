"""The training loop where numbers are not finite: it stops or skips, and fp16 scales its loss."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.data.batches import BatchPlan, Epochs, windows
from loractl.errors import NumericError
from loractl.models.objective import TokenLoss, loss_sum
from loractl.records import Batch, DataState
from loractl.training.state import TrainState
from loractl.training.steps import steps
from tests.training.conftest import Bench, Counted, Watcher, assert_near, rows


def test_a_nan_in_a_weight_stops_the_first_step_before_anything_changes(
    bench: Callable[..., Bench],
) -> None:
    made = bench()
    with torch.no_grad():
        made.model.model.layers[1].mlp.up_proj.base.weight[0, 0] = math.nan
    before = made.weights()
    with pytest.raises(NumericError, match=r"step 1: loss is nan, in the batch of rows \d+, \d+"):
        list(made.run(BatchPlan(2, 2, 128, packing=False)))
    assert_near(made.weights(), before, 0)
    assert made.state.step == 0 and not made.optimizer.state


def test_the_bad_rows_are_named_not_their_neighbours(bench: Callable[..., Bench]) -> None:
    made = bench()

    @Counted
    def loss(batch: Batch) -> tuple[Tensor, int]:
        total, n = loss_sum(made.model, batch)
        return (total * math.inf if 7 in batch.lines else total), n

    with pytest.raises(NumericError, match=r"step \d: loss is inf, in the batch of rows 7;"):
        list(made.run(BatchPlan(1, 12, 128, packing=False), loss))


def test_a_learning_rate_far_too_high_stops_at_the_first_bad_number(
    bench: Callable[..., Bench],
) -> None:
    made = bench(lr=1e30)
    seen = []
    with pytest.raises(NumericError, match=r"step 2: .*try a learning_rate below 1e\+30"):
        for step in made.run(BatchPlan(4, 1, 128, packing=False)):
            seen.append((step.loss, made.weights()))
    assert len(seen) == 1 and math.isfinite(seen[0][0])
    assert_near(made.weights(), seen[0][1], 0)
    assert all(bool(torch.isfinite(value).all()) for value in seen[0][1].values())


def test_a_gradient_that_is_not_finite_stops_even_where_the_loss_is(
    bench: Callable[..., Bench],
) -> None:
    made = bench()
    list(made.parameters.values())[3].register_hook(lambda grad: grad * math.nan)
    before = made.weights()
    with pytest.raises(NumericError, match="step 1: gradient norm is nan, in rows "):
        list(made.run(BatchPlan(2, 1, 128, packing=False)))
    assert_near(made.weights(), before, 0)


def test_fp16_with_a_scaled_loss_trains_about_like_float32(bench: Callable[..., Bench]) -> None:
    plan = BatchPlan(2, 1, 32, packing=False)
    exact, half = bench(3), bench(3, dtype="float16", scale=256.0)
    short = [example for example in rows() if len(example.ids) < 32]
    for made in (exact, half):
        given = windows(Epochs(short, plan), DataState(0, 0))
        loss = TokenLoss(made.model)
        done = list(steps(loss, made.parameters, made.optimizer, given, made.state, made.recipe))
        assert len(done) == 3 and all(math.isfinite(step.loss) for step in done)
    assert half.state.loss_scale["scale"] == 256.0
    for name, parameter in half.parameters.items():
        assert parameter.dtype == torch.float32
        moved = (parameter - exact.parameters[name]).abs().max().item()
        assert moved < 6e-4, f"{name}: three steps of 2e-4 move a weight by 6e-4 at most"


def test_an_overflow_in_fp16_skips_the_step_and_lowers_the_scale(
    bench: Callable[..., Bench],
) -> None:
    plan = BatchPlan(2, 1, 32, packing=False)
    made = bench(2, dtype="float16", scale=2.0**40)  # over what fp16 can hold
    before = made.weights()
    first = next(iter(made.run(plan)))
    assert not math.isfinite(first.grad_norm) and math.isfinite(first.loss)
    assert_near(made.weights(), before, 0)
    assert made.state.step == 1 and made.state.loss_scale["scale"] == 2.0**39


def test_an_overflow_at_the_lowest_scale_stops_the_run(bench: Callable[..., Bench]) -> None:
    made = bench(2, dtype="float16", scale=1.0)
    list(made.parameters.values())[0].register_hook(lambda grad: grad * math.inf)
    with pytest.raises(NumericError, match="gradient norm is"):
        list(made.run(BatchPlan(2, 1, 32, packing=False)))


def bad_at(made: Bench, bad: set[int]) -> Any:
    """The loss of a bench, infinite in these windows, counted from 1."""
    seen = iter(range(1, 1000))

    @Counted
    def loss(batch: Batch) -> tuple[Tensor, int]:
        total, n = loss_sum(made.model, batch)
        return (total * math.inf if next(seen) in bad else total), n

    return loss


def test_a_skipped_step_leaves_weights_and_averages_alone_and_is_counted(
    bench: Callable[..., Bench],
) -> None:
    made, plan = bench(6), BatchPlan(4, 1, 128, packing=False)
    made.recipe = replace(made.recipe, non_finite_limit=3)
    weights, moments, skipped = [made.weights()], [], []
    for step in made.run(plan, bad_at(made, {1, 2, 4})):
        weights.append(made.weights())
        moments.append({n: made.optimizer.state[p].get("step") for n, p in made.parameters.items()})
        skipped.append((step.skipped[:11], step.loss))
    bad = "loss is inf"
    assert [what for what, _ in skipped] == [bad, bad, "", bad, "", ""]
    assert all(loss == math.inf for what, loss in skipped if what)
    for number, (what, _) in enumerate(skipped):
        moved = any(not torch.equal(weights[number][n], weights[number + 1][n]) for n in weights[0])
        assert moved != bool(what)
    assert set(moments[1].values()) == {None}
    assert all(float(n) == 3 for n in moments[5].values()), "skipped steps are none of AdamW's"
    assert (made.state.step, made.state.skipped, made.state.skipped_in_row) == (6, 3, 0)


def test_the_limit_of_steps_in_a_row_stops_with_the_weights_of_the_last_that_was_taken(
    bench: Callable[..., Bench],
) -> None:
    made, plan = bench(9), BatchPlan(4, 1, 128, packing=False)
    made.recipe = replace(made.recipe, non_finite_limit=3)
    done = []
    with pytest.raises(NumericError, match=r"step 6: loss is inf, in the batch of rows .*3 steps"):
        for _ in made.run(plan, bad_at(made, {1, 2, 4, 5, 6})):
            done.append(made.weights())
    assert len(done) == 5 and made.state.step == 5
    assert_near(made.weights(), done[2], 0)


def test_a_gradient_that_is_not_finite_is_skipped_in_fp16_too(bench: Callable[..., Bench]) -> None:
    made = bench(3, dtype="float16", scale=1.0)
    made.recipe = replace(made.recipe, non_finite_limit=2)
    calls = iter(range(1000))
    first = next(iter(made.parameters.values()))
    first.register_hook(lambda grad: grad * (math.nan if next(calls) == 1 else 1.0))
    done = list(made.run(BatchPlan(2, 1, 32, packing=False)))
    assert [step.skipped[:20] for step in done] == ["", "gradient norm is nan", ""]
    assert made.state.skipped == 1


def test_a_run_cut_between_skipped_steps_goes_on_bit_for_bit(bench: Callable[..., Bench]) -> None:
    plan, bad = BatchPlan(4, 1, 128, packing=False), {3, 4}
    whole, first = bench(6), bench(6)
    for made in (whole, first):
        made.recipe = replace(made.recipe, non_finite_limit=3)
    list(whole.run(plan, bad_at(whole, bad)))
    for step in first.run(plan, bad_at(first, bad)):
        if step.step == 3:
            break
    first.state = TrainState.restored(first.state.snapshot())
    assert first.state.skipped_in_row == 1
    list(first.run(plan, bad_at(first, {1})))
    assert_near(first.weights(), whole.weights(), 0)
    assert first.state == whole.state


def test_a_rank_policy_never_sees_the_gradients_of_a_step_that_was_not_taken(
    bench: Callable[..., Bench],
) -> None:
    made = bench(3, dtype="float16", scale=2.0**40)
    watcher = Watcher(made.parameters)
    made.recipe = replace(made.recipe, ranks=watcher)
    norms = [step.grad_norm for step in made.run(BatchPlan(4, 1, 128, packing=False))]
    assert not any(math.isfinite(norm) for norm in norms) and watcher.shown == [None] * 3
