"""The table of optimizers: what stands in it is what the settings name, what torch keeps, and what
everybody who reads it counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from loractl.config import optimizers
from loractl.config.objectives import OBJECTIVES
from loractl.config.optimizers import OPTIMIZERS, OptimizerKind
from loractl.config.settings import NOT_YET, RunConfig, TrainSection
from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.models import objective
from loractl.models.shape.read import named
from loractl.planning.request import Request, memory_of
from loractl.training import optim
from loractl.training.optim import Rates, build_optimizer, restore_state_, state_tensors
from loractl.training.rank_schedule import RankSchedule

MOMENTUM = OptimizerKind(averages=("momentum_buffer",))


def test_the_tables_and_the_settings_have_the_same_words() -> None:
    words = set(get_args(TrainSection.model_fields["optimizer"].annotation))
    assert words <= OPTIMIZERS.keys()
    assert optim.BUILDERS.keys() == words - set(NOT_YET["train.optimizer"] or ())
    assert set(get_args(RunConfig.model_fields["objective"].annotation)) == OBJECTIVES.keys()
    assert OBJECTIVES.keys() == objective.BUILDERS.keys()


@pytest.mark.parametrize("name", optim.BUILDERS)
def test_a_row_names_all_that_torch_keeps(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = build_optimizer(name, {"a": parameter}, Rates(0.1, 0.0))
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kind, state = OPTIMIZERS[name], optimizer.state[parameter]
    assert state.keys() == {*kind.scalars, *kind.shaped}
    assert all(state[what].shape == parameter.shape for what in kind.shaped)


class Momentum:
    """A tiny model that is trained by a row that a test adds."""

    def __init__(self, path: Path) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        ranks = resolve(RankSpec(rank=4, alpha=8), adaptable(model), head="lm_head")
        self.layers = inject_(model, ranks)
        self.parameters = {
            f"{name}.{letter}": one
            for name, layer in self.layers.items()
            for letter, one in (("A", layer.A), ("B", layer.B))
        }
        self.optimizer = build_optimizer("momentum", self.parameters, Rates(0.1, 0.0))

    def step(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = torch.full_like(parameter, 0.5)
        self.optimizer.step()


@pytest.fixture
def momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizers.OPTIMIZERS, "momentum", MOMENTUM)
    build = lambda groups, rate, fused: torch.optim.SGD(groups, rate, 0.9)  # noqa: E731
    monkeypatch.setitem(optim.BUILDERS, "momentum", build)


@pytest.mark.usefixtures("momentum")
def test_another_row_is_saved_restored_and_resized(base: Callable[..., Path]) -> None:
    first, second = Momentum(base("llama")), Momentum(base("llama"))
    first.step()
    saved = state_tensors(first.optimizer, first.parameters)
    assert {name.partition(".")[0] for name in saved} == {"momentum_buffer"}
    restore_state_(second.optimizer, second.parameters, saved, MOMENTUM)
    for name, parameter in first.parameters.items():
        second.parameters[name].data.copy_(parameter.data)
    first.step()
    second.step()
    for name, parameter in first.parameters.items():
        assert torch.equal(second.parameters[name], parameter)
    changed = RankSchedule(
        second.layers, {1: 7}, second.optimizer, init="default", seed=0, kind=MOMENTUM
    )
    changed.after_update(1)
    for parameter in second.parameters.values():
        assert 7 in parameter.shape
        assert second.optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape
    second.step()


@pytest.mark.usefixtures("momentum")
def test_another_row_is_planned_with() -> None:
    kept, of_adamw = (
        memory_of(named("7B"), Request(rank=8, optimizer=name), "lora").largest["optimizer"]
        for name in ("momentum", "adamw")
    )
    assert 2 * kept == of_adamw > 0
