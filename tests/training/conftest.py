"""What the tests of training share: rows, and a tiny model with adapters, ready to be trained."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from loractl.data.batches import BatchPlan, Epochs, windows
from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.models.objective import TokenLoss
from loractl.records import UNTRAINED, Batch, Example
from loractl.training.optim import LearningRate, Rates, build_optimizer
from loractl.training.state import TrainState
from loractl.training.steps import Recipe, Step, steps

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

    def groups(self, window: Sequence[Batch]) -> list[list[Batch]]:
        return [[batch] for batch in window]

    def sums(self, group: Sequence[Batch]) -> list[Tensor]:
        return [self.function(batch)[0] for batch in group]


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
