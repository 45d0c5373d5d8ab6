"""The learning rate as a function of the step, the groups of AdamW, and its state on disk and
back."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import AutoModelForCausalLM

from loractl.config.optimizers import OPTIMIZERS
from loractl.lora.layer import LoraLinear
from loractl.training.optim import (
    BUILDERS,
    SCHEDULES,
    LearningRate,
    Rates,
    build_optimizer,
    restore_state_,
    set_rate_,
    state_tensors,
)

RATES = st.builds(
    LearningRate,
    st.floats(1e-6, 1.0),
    st.sampled_from(sorted(SCHEDULES)),
    st.floats(0, 0.99) | st.integers(1, 5).map(float),
    st.integers(5, 200),
)


@given(RATES)
def test_the_rate_climbs_to_its_peak_then_never_rises_and_is_never_zero(rate: LearningRate) -> None:
    values = [rate.at(step) for step in range(rate.total)]
    assert all(0 < value <= rate.peak * (1 + 1e-12) for value in values)
    climb, rest = values[: rate.warmup_steps], values[rate.warmup_steps :]
    assert climb == sorted(climb) and rest == sorted(rest, reverse=True)
    assert not rest or rest[0] == pytest.approx(rate.peak)


def test_warmup_is_a_share_below_one_and_steps_from_one_on() -> None:
    assert LearningRate(1.0, "constant", 0.03, 100).warmup_steps == 3
    assert LearningRate(1.0, "constant", 0.03, 10).warmup_steps == 1
    assert LearningRate(1.0, "constant", 0.0, 10).warmup_steps == 0
    assert LearningRate(1.0, "constant", 1.0, 10).warmup_steps == 1
    assert LearningRate(1.0, "constant", 7.0, 10).warmup_steps == 7


def test_warmup_climbs_in_equal_parts_of_which_the_first_is_not_zero() -> None:
    rate = LearningRate(0.8, "constant", 3.0, 10)
    assert [rate.at(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])


def test_each_schedule_has_its_values_at_begin_middle_and_end() -> None:
    for name, middle in (("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)):
        rate = LearningRate(2.0, name, 4.0, 24)
        end = {"constant": 2.0, "linear": 2.0 / 20, "cosine": 1 + math.cos(math.pi * 19 / 20)}
        assert rate.at(4) == 2.0
        assert rate.at(14) == pytest.approx(2.0 * middle)
        assert rate.at(23) == pytest.approx(end[name])
    assert LearningRate(2.0, "cosine", 0.0, 1).at(0) == 2.0


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_the_schedules_are_those_of_transformers_after_the_warmup(name: str) -> None:
    from transformers import get_scheduler

    kind = "constant_with_warmup" if name == "constant" else name
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=4, num_training_steps=20)
    ours = LearningRate(0.5, name, 4.0, 20)
    for step in range(20):
        if step >= 4:  # theirs begins its warm-up at a rate of zero, a step that trains nothing
            assert ours.at(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no optimizer step between two of the scheduler
            theirs.step()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def test_the_rows_of_single_tokens_do_not_decay_and_have_the_rate_of_A() -> None:
    at = "base_model.model.model.embed_tokens"
    named = {
        f"{at}.token_adapter.trainable_tokens_delta": torch.nn.Parameter(torch.ones(2, 3)),
        "base_model.model.q_proj.lora_A.weight": torch.nn.Parameter(torch.ones(2, 3)),
    }
    optimizer = build_optimizer("adamw", named, Rates(0.5, 0.1, lora_plus_ratio=16.0))
    rows, A = ({g["weight_decay"]: g["ratio"] for g in optimizer.param_groups}[d] for d in (0, 0.1))
    assert rows == A == 1.0


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    model = network()
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer("adamw", parameters, Rates(0.1, 0.5))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer.step()
    for name, parameter in parameters.items():
        decayed = before[name] * (1 - 0.1 * 0.5) if parameter.dim() > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), decayed)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("dora", [False, True])
def test_the_groups_of_lora_plus_are_those_of_peft(dora: bool, base: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("llama"), dtype=torch.float32)
    targets = ["q_proj", "down_proj", "embed_tokens"]
    model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, use_dora=dora))
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    ours = build_optimizer("adamw", parameters, Rates(1e-3, 0.1, 16.0))

    def rates(optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, float]]:
        return {
            id(p): (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for p in group["params"]
        }

    assert rates(ours).keys() == rates(theirs).keys()
    for name, parameter in parameters.items():
        found, expected = rates(ours)[id(parameter)], rates(theirs)[id(parameter)]
        if "embed_tokens" not in name:  # PEFT's 1e-6 for embeddings is no ratio
            # PEFT decays a magnitude, which it takes for a matrix; ours, like a norm, is not
            assert found == (expected[0], expected[1] if parameter.dim() > 1 else 0.0), name
        elif parameter.dim() > 1:
            assert found == (1e-3, 0.1), name
    assert {lr for lr, _ in rates(ours).values()} == {1e-3, 1.6e-2}


def test_a_rate_scales_every_group_in_its_ratio() -> None:
    parameters = {
        "x.lora_A.weight": nn.Parameter(torch.ones(2, 3)),
        "x.lora_B.weight": nn.Parameter(torch.ones(3, 2)),
    }
    optimizer = build_optimizer("adamw", parameters, Rates(1.0, 0.0, 8.0))
    for rate in (0.5, 0.25, 0.0):
        set_rate_(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups] == [rate, 8 * rate]


def losses_of(p: float, q: float) -> list[float]:
    """Losses of 20 steps with alpha / (p q), A p times as large, and rates p and q times as high.

    B starts at zero. AdamW adds eps to the root of the averages, which are 1/p and 1/q of the
    plain run's: eps goes with them.
    """
    torch.manual_seed(0)
    frozen = nn.Linear(6, 5).requires_grad_(False)
    layer = LoraLinear(frozen, torch.randn(3, 6), torch.zeros(5, 3), scale=1.5 / (p * q))
    layer = layer.double()
    with torch.no_grad():
        layer.A.mul_(p)
    x, target = torch.randn(9, 6).double(), torch.randn(9, 5).double()
    named = {"x.lora_A.weight": layer.A, "x.lora_B.weight": layer.B}
    optimizer = build_optimizer("adamw", named, Rates(0.01 * p, 0.0, q / p))
    for group in optimizer.param_groups:
        group["eps"] = 1e-8 / (p if group["params"][0] is layer.A else q)
    rate = LearningRate(0.01 * p, "cosine", 0.1, 20)
    losses = []
    for step in range(rate.total):
        set_rate_(optimizer, rate.at(step))
        loss = (layer(x) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("p,q", [(2.0, 1.0), (1.0, 16.0), (0.25, 8.0), (3.0, 0.7)])
def test_lora_plus_trades_off_with_scale_and_start_exactly(p: float, q: float) -> None:
    plain, other = losses_of(1.0, 1.0), losses_of(p, q)
    assert plain[-1] < 0.9 * plain[0]
    assert max(abs(a - b) for a, b in zip(plain, other, strict=True)) < 1e-12


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", BUILDERS)
def test_state_put_back_goes_on_bit_for_bit(name: str) -> None:
    whole = network()
    optimizer = build_optimizer(name, dict(whole.named_parameters()), Rates(0.1, 0.1))
    train(whole, optimizer, range(3))
    saved = state_tensors(optimizer, dict(whole.named_parameters()))
    again = network()
    again.load_state_dict(whole.state_dict())
    parameters = dict(again.named_parameters())
    other = build_optimizer(name, parameters, Rates(0.1, 0.1))
    restore_state_(other, parameters, saved, OPTIMIZERS[name])
    train(whole, optimizer, range(3, 6))
    assert saved.keys() == {
        f"{what}.{one}"
        for one, parameter in parameters.items()
        for what in OPTIMIZERS[name].parts(tuple(parameter.shape))
    }
    train(again, other, range(3, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_a_row_of_no_gradient_keeps_its_weights_but_for_the_decay(name: str) -> None:
    matrix, vector = nn.Parameter(torch.ones(80, 60)), nn.Parameter(torch.ones(60))
    optimizer = build_optimizer(name, {"a": matrix, "b": vector}, Rates(0.1, 0.5))
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((80, 60), 1 - 0.1 * 0.5))
    assert torch.equal(vector.detach(), torch.ones(60))


@pytest.mark.parametrize("shape", [(6, 9), (7,), (2, 5, 4)])
def test_adafactor_takes_the_steps_of_the_one_in_transformers(shape: tuple[int, ...]) -> None:
    from transformers.optimization import Adafactor

    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)) / 4
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = build_optimizer("adafactor", {"a": ours}, Rates(3e-3, 0.0))
    # as transformers' Trainer makes it for optim: adafactor
    other = Adafactor([theirs], lr=3e-3, scale_parameter=False, relative_step=False)
    for seed in range(8):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_what_starts_at_zero_moves_as_fast_with_adafactor_as_with_adamw() -> None:
    moved = {}
    for name in ("adamw", "adafactor"):
        B = nn.Parameter(torch.zeros(6, 4))
        optimizer = build_optimizer(name, {"a": B}, Rates(1e-3, 0.0))
        B.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        moved[name] = float(B.detach().square().mean().sqrt())
    assert moved["adafactor"] == pytest.approx(moved["adamw"], rel=0.05)


def test_what_was_saved_is_not_changed_by_training_on() -> None:
    model = network()
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer("adamw", parameters, Rates(0.1, 0.0))
    train(model, optimizer, range(1))
    other = network()
    fresh = build_optimizer("adamw", dict(other.named_parameters()), Rates(0.1, 0.0))
    saved = {name: value.clone() for name, value in state_tensors(optimizer, parameters).items()}
    restore_state_(fresh, dict(other.named_parameters()), saved, OPTIMIZERS["adamw"])
    kept = {name: value.clone() for name, value in saved.items()}
    train(other, fresh, range(1, 3))
    assert all(torch.equal(saved[name], kept[name]) for name in kept)


def test_a_state_of_no_steps_is_empty_and_a_part_that_is_missing_is_an_error() -> None:
    model = network()
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer("adamw", parameters, Rates(0.1, 0.0))
    assert state_tensors(optimizer, parameters) == {}
    restore_state_(optimizer, parameters, {}, OPTIMIZERS["adamw"])
    train(model, optimizer, range(1))
    saved = state_tensors(optimizer, parameters)
    del saved["exp_avg_sq.0.weight"]
    with pytest.raises(KeyError, match=r"exp_avg_sq\.0\.weight"):
        restore_state_(optimizer, parameters, saved, OPTIMIZERS["adamw"])


def test_state_of_another_optimizer_is_not_passed_over() -> None:
    model = network()
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer("adamw", parameters, Rates(0.1, 0.0))
    saved = {f"momentum_buffer.{name}": torch.ones_like(p) for name, p in parameters.items()}
    with pytest.raises(KeyError, match=r"momentum_buffer\.0\.bias: not part"):
        restore_state_(optimizer, parameters, saved, OPTIMIZERS["adamw"])
