"""The optimizer in one kernel, as on a GPU: it writes behind autograd's back, and wants moments and
gradients to lie as their parameter does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from loractl.config.optimizers import OPTIMIZERS
from loractl.data.batches import BatchPlan, Epochs, windows
from loractl.lora.adalora import AdaloraLayer, Allocator, Budget, Smoothing
from loractl.lora.init import INITS, PART_INITS
from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.models.objective import TokenLoss
from loractl.records import UNTRAINED, Example
from loractl.training.optim import (
    LearningRate,
    Rates,
    build_optimizer,
    restore_state_,
    state_tensors,
)
from loractl.training.rank_schedule import RankSchedule
from loractl.training.state import TrainState
from loractl.training.steps import Recipe, steps

Make = Callable[..., Path]
TOTAL, MIDDLE = 6, 3
CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"formula": "dora"},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "adalora": {"formula": "adalora"},
    "dora, rank by schedule": {"formula": "dora", "schedule": {2: 7, 4: 3}},
}


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 300, (length,), generator=generator).tolist() for length in (30, 9)]
    return [Example(ids, [UNTRAINED, *ids[1:]], line) for line, ids in enumerate(rows * 4, 1)]


class Training:
    """A tiny model with adapters, its optimizer fused or not."""

    def __init__(
        self, path: Path, *, fused: bool, formula: str = "lora", init: str = "default",
        schedule: dict[int, int] | None = None,
    ) -> None:  # fmt: skip
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        ranks = resolve(RankSpec(rank=4, alpha=8), adaptable(model), head="lm_head")
        self.layers = inject_(model, ranks, formula=formula, init=init)
        self.parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.loss = TokenLoss(model.train())
        self.optimizer = build_optimizer("adamw", self.parameters, Rates(1e-2, 0.0), fused=fused)
        policy: Any = None
        if formula == "adalora":
            triplets = {n: x for n, x in self.layers.items() if isinstance(x, AdaloraLayer)}
            budget = Budget(4 * len(triplets), 2 * len(triplets), 1, 1, TOTAL, 1)
            policy = Allocator(triplets, budget, smoothing=Smoothing(), orthogonality=0.5)
        if schedule:
            policy = RankSchedule(
                self.layers, schedule, self.optimizer, init=init, seed=0, kind=OPTIMIZERS["adamw"]
            )
        rate = LearningRate(1e-2, "constant", 0.0, TOTAL)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.recipe = Recipe(rate, 1.0, 0, torch.device("cpu"), scaler, ranks=policy)
        self.state = TrainState()

    def run(self, count: int) -> list[float]:
        plan = BatchPlan(batch_size=2, accumulation=1, max_length=64, packing=True, seed=0)
        given = windows(Epochs(examples(), plan), self.state.data)
        taken = steps(self.loss, self.parameters, self.optimizer, given, self.state, self.recipe)
        return [next(taken).loss for _ in range(count)]

    def weights(self) -> dict[str, Tensor]:
        return {name: one.detach().clone() for name, one in self.parameters.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_fused_optimizer_trains_the_same_numbers(base: Make, case: str) -> None:
    plain = Training(base("llama"), fused=False, **CASES[case])
    fused = Training(base("llama"), fused=True, **CASES[case])
    assert fused.run(TOTAL) == pytest.approx(plain.run(TOTAL), rel=1e-6)
    torch.testing.assert_close(fused.weights(), plain.weights(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["dora", "pissa", "olora"])
def test_a_fused_optimizer_goes_on_with_what_another_process_saved(base: Make, case: str) -> None:
    whole = Training(base("llama"), fused=True, **CASES[case])
    losses = whole.run(TOTAL)
    first = Training(base("llama"), fused=True, **CASES[case])
    assert first.run(MIDDLE) == losses[:MIDDLE]
    second = Training(base("llama"), fused=True, **CASES[case])
    with torch.no_grad():
        for name, parameter in second.parameters.items():
            parameter.copy_(first.parameters[name])
    saved = state_tensors(first.optimizer, first.parameters)
    restore_state_(second.optimizer, second.parameters, saved, OPTIMIZERS["adamw"])
    second.state = first.state
    assert second.run(TOTAL - MIDDLE) == losses[MIDDLE:]
    torch.testing.assert_close(second.weights(), whole.weights(), rtol=0, atol=0)


def test_moments_lie_as_their_parameter_does() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, 3).T)  # (3, 4), not contiguous
    optimizer = build_optimizer("adamw", {"a": parameter}, Rates(0.1, 0.0), fused=True)
    moments = {f"{what}.a": torch.ones(3, 4) for what in ("exp_avg", "exp_avg_sq")}
    restore_state_(
        optimizer, {"a": parameter}, {"step.a": torch.tensor(1.0), **moments}, OPTIMIZERS["adamw"]
    )
    for what in ("exp_avg", "exp_avg_sq"):
        assert optimizer.state[parameter][what].stride() == parameter.stride()
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("init", [*INITS, *PART_INITS])
def test_a_and_b_are_contiguous_however_they_start(base: Make, init: str) -> None:
    for name in ("llama", "gpt2"):  # weights that lie as (d_out, d_in), and as (d_in, d_out)
        model: Any = AutoModelForCausalLM.from_pretrained(base(name), dtype=torch.float32)
        ranks = resolve(RankSpec(rank=4, alpha=8), adaptable(model), head="lm_head")
        for layer in inject_(model, ranks, init=init).values():
            assert layer.A.is_contiguous() and layer.B.is_contiguous()
