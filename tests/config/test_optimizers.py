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
from loractl.config.settings import RunConfig, TrainSection
from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.models import objective
from loractl.models.shape.read import from_config, named
from loractl.planning.request import Request, memory_of
from loractl.training import optim
from loractl.training.optim import Rates, build_optimizer, restore_state_, state_tensors
from loractl.training.rank_schedule import RankSchedule
from tests.planning.conftest import allocated

MOMENTUM = OptimizerKind(averages=("momentum_buffer",))


def test_the_tables_and_the_settings_have_the_same_words() -> None:
    words = set(get_args(TrainSection.model_fields["optimizer"].annotation))
    assert words == OPTIMIZERS.keys() == optim.BUILDERS.keys()
    assert set(get_args(RunConfig.model_fields["objective"].annotation)) == OBJECTIVES.keys()
    assert OBJECTIVES.keys() == objective.BUILDERS.keys()


SHAPES = [(3, 2), (5,), (9, 1), (2, 3, 4), (64, 64), (63, 65), (70, 65), (4097,), (3, 40, 50)]


@pytest.mark.parametrize("name", optim.BUILDERS)
def test_a_row_names_all_that_is_kept_and_counts_its_bytes(name: str) -> None:
    parameters = {str(shape): torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES}
    optimizer, kind = build_optimizer(name, parameters, Rates(0.1, 0.0)), OPTIMIZERS[name]
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tables = {what: length for what, length in kind.shared}
    for parameter in parameters.values():
        state = dict(optimizer.state[parameter])
        for what in tables.keys() & state.keys():
            assert state.pop(what).shape == (tables[what],)
        parts = kind.parts(tuple(parameter.shape))
        assert state.keys() == parts.keys()
        found = {what: torch.as_tensor(value) for what, value in state.items()}
        for what, part in parts.items():
            assert tuple(found[what].shape) == part.shape, what
            own = str(parameter.dtype) if part.dtype == "own" else f"torch.{part.dtype}"
            assert str(found[what].dtype) == own, what
        bytes_kept = sum(one.nbytes for one in found.values() if one.dim())
        assert kind.size(tuple(parameter.shape)) == bytes_kept


def test_pages_are_not_counted_on_a_gpu_and_only_large_tensors_have_them() -> None:
    paged = OPTIMIZERS["adamw-paged"]
    small, large = (8, 4096), (64, 4096)
    assert paged.size(small, on_cpu=False) == paged.size(small) == 8 * 8 * 4096
    assert paged.size(large, on_cpu=False) == 0 < paged.size(large)


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(optimizers.missing_package(name) for name in OPTIMIZERS)  # it is installed here
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    needy = {name for name in OPTIMIZERS if optimizers.missing_package(name)}
    assert needy == {"adamw-8bit", "adamw-paged"}
    assert "pip install 'loractl[quant]'" in str(optimizers.missing_package("adamw-8bit"))


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


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_what_is_planned_is_what_is_kept(base: Callable[..., Path], name: str, method: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base("llama"), dtype=torch.float32)
    if method == "full":
        parameters = dict(model.named_parameters())
    else:
        ranks = resolve(RankSpec(rank=128, alpha=8), adaptable(model), head="lm_head")
        inject_(model, ranks, formula=method)
        parameters = {n: one for n, one in model.named_parameters() if one.requires_grad}
    optimizer = build_optimizer(name, parameters, Rates(0.1, 0.0))
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = sum(one.nbytes for one in state_tensors(optimizer, parameters).values() if one.dim())
    shape = from_config(model.config.to_dict(), where="config.json")
    request = Request(rank=128, optimizer=name, method=method)
    what = "full" if method == "full" else "lora"
    assert memory_of(shape, request, what, on_cpu=True).largest["optimizer"] == kept


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_makes_as_many_copies_as_the_row_says(name: str) -> None:
    parameters = {"a": torch.nn.Parameter(torch.ones(256, 512))}
    optimizer = build_optimizer(name, parameters, Rates(0.1, 0.0))
    parameters["a"].grad = torch.full((256, 512), 0.5)
    optimizer.step()  # from here on it keeps its state
    left, peak, _ = allocated(optimizer.step)
    copies = peak / parameters["a"].nbytes
    assert left <= 0.05 * parameters["a"].nbytes
    assert copies == pytest.approx(OPTIMIZERS[name].copies_on_cpu, abs=0.3), copies
