"""A rank schedule in a run of its own: parameters stay, Adam's state follows, draws are its own."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loractl.config.optimizers import OPTIMIZERS
from loractl.lora.inject import inject_
from loractl.lora.ranks import ModuleRank
from loractl.training.rank_schedule import RankSchedule

X = torch.randn(20, 10, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 10)
        self.one = nn.Linear(10, 8)
        self.two = nn.Linear(8, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(self.table(ids))))  # type: ignore[no-any-return]


def make(formula: str = "lora", seed: int = 0) -> tuple[Model, dict[str, Any], torch.optim.AdamW]:
    torch.manual_seed(0)
    model = Model()
    ranks = {name: ModuleRank(4, 8, 2.0) for name in ("table", "one", "two")}
    layers = inject_(model, ranks, formula=formula, seed=seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return model, layers, torch.optim.AdamW(parameters, lr=0.02)


def schedule_of(layers: Any, adam: torch.optim.Optimizer, steps: dict[int, int]) -> RankSchedule:
    return RankSchedule(layers, steps, adam, init="default", seed=3, kind=OPTIMIZERS["adamw"])


def step_(model: Model, adam: torch.optim.Optimizer, number: int) -> float:
    adam.zero_grad()
    ids = torch.arange(20).roll(number)[:12]
    loss = model(ids).square().mean()
    loss.backward()
    adam.step()
    return float(loss.detach())


@pytest.mark.parametrize("formula", ["lora", "dora"])
def test_growing_changes_no_answer_and_training_uses_the_new_directions(formula: str) -> None:
    model, layers, adam = make(formula)
    ranks = schedule_of(layers, adam, {2: 7})
    ids = torch.arange(20)
    held = {name: (layer.A, layer.B) for name, layer in layers.items()}
    for number in (1, 2):
        step_(model, adam, number)
        before = model(ids).detach()
        ranks.after_update(number)
        torch.testing.assert_close(model(ids).detach(), before, rtol=1e-5, atol=1e-6)
    assert {layer.rank for layer in layers.values()} == {7}
    assert all(layer.A is held[n][0] and layer.B is held[n][1] for n, layer in layers.items())
    losses = [step_(model, adam, number) for number in range(3, 30)]
    assert losses[-1] < losses[0]
    assert all(layer.B[:, 4:].any(dim=0).all() for n, layer in layers.items() if n != "table")


@pytest.mark.parametrize("formula", ["lora", "dora"])
def test_shrinking_keeps_the_best_of_each_update(formula: str) -> None:
    model, layers, adam = make(formula)
    ranks = schedule_of(layers, adam, {5: 2})
    for number in range(1, 6):
        step_(model, adam, number)
    products = {name: (layer.B @ layer.A).detach() for name, layer in layers.items()}
    norms = {name: layer.norm() for name, layer in layers.items() if formula == "dora"}
    ranks.after_update(5)
    for name, layer in layers.items():
        U, S, Vh = torch.linalg.svd(products[name])
        best = U[:, :2] * S[:2] @ Vh[:2]
        torch.testing.assert_close((layer.B @ layer.A).detach(), best, rtol=1e-4, atol=1e-5)
        assert layer.rank == 2 and layer.scale == 2.0
        assert adam.state[layer.A]["exp_avg"].shape == layer.A.shape
        assert adam.state[layer.B]["exp_avg_sq"].shape == layer.B.shape
    for name, norm in norms.items():
        assert not torch.equal(layers[name].norm(), norm), "the norm is that of the old update"
    step_(model, adam, 6)


def test_steps_that_are_not_named_change_nothing() -> None:
    model, layers, adam = make()
    ranks = schedule_of(layers, adam, {2: 7})
    before = copy.deepcopy(model.state_dict())
    ranks.after_update(1)
    ranks.after_update(3)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert ranks.penalty() is None and ranks.tensors() == {}


def test_new_directions_depend_on_seed_and_step_alone() -> None:
    found = []
    for noise in (1, 2):
        _, layers, adam = make()
        torch.manual_seed(noise)
        schedule_of(layers, adam, {2: 6}).after_update(2)
        found.append(layers["one"].A.detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0][4], found[0][5])


def test_without_state_in_the_optimizer_there_is_none_to_carry() -> None:
    _, layers, adam = make()
    schedule_of(layers, adam, {1: 6}).after_update(1)
    assert not adam.state[layers["one"].A] and layers["one"].A.shape == (6, 10)
