"""The learning rate as a function of the step, the groups of AdamW, and its state on disk and
back."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from loractl.training.optim import (
    SCHEDULES,
    LearningRate,
    adamw,
    restore_state_,
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


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    model = network()
    parameters = dict(model.named_parameters())
    optimizer = adamw(parameters, learning_rate=0.1, weight_decay=0.5)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer.step()
    for name, parameter in parameters.items():
        decayed = before[name] * (1 - 0.1 * 0.5) if parameter.dim() > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), decayed)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_state_put_back_goes_on_bit_for_bit() -> None:
    whole = network()
    optimizer = adamw(dict(whole.named_parameters()), learning_rate=0.1, weight_decay=0.1)
    train(whole, optimizer, range(3))
    saved = state_tensors(optimizer, dict(whole.named_parameters()))
    again = network()
    again.load_state_dict(whole.state_dict())
    parameters = dict(again.named_parameters())
    other = adamw(parameters, learning_rate=0.1, weight_decay=0.1)
    restore_state_(other, parameters, saved)
    train(whole, optimizer, range(3, 6))
    assert saved.keys() == {
        f"{what}.{name}" for what in ("step", "exp_avg", "exp_avg_sq") for name in parameters
    }
    train(again, other, range(3, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )


def test_what_was_saved_is_not_changed_by_training_on() -> None:
    model = network()
    parameters = dict(model.named_parameters())
    optimizer = adamw(parameters, learning_rate=0.1, weight_decay=0.0)
    train(model, optimizer, range(1))
    other = network()
    fresh = adamw(dict(other.named_parameters()), learning_rate=0.1, weight_decay=0.0)
    saved = {name: value.clone() for name, value in state_tensors(optimizer, parameters).items()}
    restore_state_(fresh, dict(other.named_parameters()), saved)
    kept = {name: value.clone() for name, value in saved.items()}
    train(other, fresh, range(1, 3))
    assert all(torch.equal(saved[name], kept[name]) for name in kept)


def test_a_state_of_no_steps_is_empty_and_a_part_that_is_missing_is_an_error() -> None:
    model = network()
    parameters = dict(model.named_parameters())
    optimizer = adamw(parameters, learning_rate=0.1, weight_decay=0.0)
    assert state_tensors(optimizer, parameters) == {}
    restore_state_(optimizer, parameters, {})
    train(model, optimizer, range(1))
    saved = state_tensors(optimizer, parameters)
    del saved["exp_avg_sq.0.weight"]
    with pytest.raises(KeyError, match=r"exp_avg_sq\.0\.weight"):
        restore_state_(optimizer, parameters, saved)
