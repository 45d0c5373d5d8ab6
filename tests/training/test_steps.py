"""The training loop: a window's loss is divided once, bad numbers stop it, fp16 scales its loss."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from loractl.data.batches import BatchPlan, Epochs, windows
from loractl.errors import NumericError
from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.models.fast.trunk import Trunk
from loractl.models.forward import recompute_activations_
from loractl.models.objective import TokenLoss, loss_sum
from loractl.records import UNTRAINED, Batch, DataState, Example
from loractl.training.optim import LearningRate, Rates, build_optimizer
from loractl.training.state import TrainState
from loractl.training.steps import Recipe, Step, steps
from loractl.world import World

CPU = torch.device("cpu")
LENGTHS = [3, 90, 8, 41, 5, 17, 64, 4, 29, 6, 110, 12]


def rows() -> list[Example]:
    """Rows of 3 to 110 tokens, of which a different share of each is trained."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for line, length in enumerate(LENGTHS, 1):
        ids = torch.randint(0, 300, (length,), generator=generator).tolist()
        first = 1 + (line * 7) % (length - 1)
        made.append(Example(ids, [UNTRAINED] * first + ids[first:], line))
    return made


class Counted:
    """A loss from a function of a batch, over the trained tokens."""

    def __init__(self, function: Callable[[Batch], tuple[Tensor, int]]) -> None:
        self.function = function

    def count(self, batch: Batch) -> int:
        return batch.n_trained

    def __call__(self, batch: Batch) -> tuple[Tensor, int]:
        return self.function(batch)


@dataclass
class Bench:
    """A tiny model with adapters, ready to be trained."""

    model: Any
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    state: TrainState
    recipe: Recipe

    def run(self, plan: BatchPlan, loss: Any = None) -> Iterator[Step]:
        given = windows(Epochs(rows(), plan), self.state.data)
        loss = loss or TokenLoss(self.model)
        return steps(loss, self.parameters, self.optimizer, given, self.state, self.recipe)

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}


@pytest.fixture
def bench(base: Callable[..., Path]) -> Callable[..., Bench]:
    def make(
        total: int = 20, lr: float = 2e-4, *, dropout: float = 0.0, dtype: str = "float32",
        clip: float = 1.0, scale: float = 2.0**16,
    ) -> Bench:  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(base("llama"), dtype=getattr(torch, dtype))
        ranks = resolve(RankSpec(rank=4, alpha=8), adaptable(model), head="lm_head")
        layers = inject_(model, ranks, dropout=dropout)
        parameters = {}
        for name, layer in layers.items():
            parameters |= {f"{name}.A": layer.A, f"{name}.B": layer.B}
        recipe = Recipe(
            learning_rate=LearningRate(lr, "cosine", 0.1, total),
            max_grad_norm=clip,
            seed=0,
            device=CPU,
            scaler=torch.amp.GradScaler("cpu", init_scale=scale, enabled=dtype == "float16"),
        )
        optimizer = build_optimizer("adamw", parameters, Rates(lr, 0.01))
        return Bench(model.train(), parameters, optimizer, TrainState(), recipe)

    return make


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor], within: float) -> None:
    worst = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert worst <= within, f"weights differ by {worst}"


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


class Watcher:
    """A rank policy that notes which gradients it is shown, and adds a penalty to every step."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.shown: list[bool | None] = []  # None: no gradients; else whether all are finite

    def penalty(self) -> Tensor:
        return 0.5 * sum(p.square().sum() for p in self.parameters.values())

    def after_update(self, step: int) -> None:
        assert step == len(self.shown) + 1
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        finite = all(bool(torch.isfinite(grad).all()) for grad in grads)
        self.shown.append(finite if grads else None)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore_(self, tensors: Any) -> None: ...


def test_a_rank_policy_never_sees_the_gradients_of_a_step_that_was_not_taken(
    bench: Callable[..., Bench],
) -> None:
    made = bench(3, dtype="float16", scale=2.0**40)
    watcher = Watcher(made.parameters)
    made.recipe = replace(made.recipe, ranks=watcher)
    norms = [step.grad_norm for step in made.run(BatchPlan(4, 1, 128, packing=False))]
    assert not any(math.isfinite(norm) for norm in norms) and watcher.shown == [None] * 3


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

    def __call__(self, batch: Batch) -> tuple[Tensor, float]:
        return 2 * loss_sum(self.model, batch)[0], self.count(batch)


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
