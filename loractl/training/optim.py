"""The optimizer, its parameter groups, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

Schedule = Callable[[float], float]

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""Share of the learning rate left when a share `done` in [0, 1] of the later steps is done."""


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of each step: linear warm-up to `peak`, then down the schedule."""

    peak: float
    schedule: str
    warmup: float  # below 1: a share of the steps; else steps
    total: int

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.warmup * self.total) if self.warmup < 1 else int(self.warmup)

    def at(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0. The first step is never at rate 0."""
        warmup = self.warmup_steps
        if step < warmup:
            return self.peak * (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, self.total - warmup)
        return self.peak * SCHEDULES[self.schedule](min(1.0, done))


def adamw(
    parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over named parameters; biases and norms (one dimension) are not decayed."""
    matrices = [p for p in parameters.values() if p.dim() > 1]
    vectors = [p for p in parameters.values() if p.dim() <= 1]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((matrices, weight_decay), (vectors, 0.0))
        if group
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)


def state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """AdamW's state as flat tensors named `<what>.<parameter>`, on the CPU."""
    return {
        f"{what}.{name}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for what, value in optimizer.state[parameter].items()
    }


def restore_state_(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Put back what `state_tensors` gave. Raises KeyError when a part of it is missing."""
    for name, parameter in parameters.items():
        if f"step.{name}" not in tensors:
            # In fp16 a run may have skipped every step so far: no state yet, for any parameter
            continue
        optimizer.state[parameter] = {
            # The step count lives on the CPU in torch's default AdamW, the averages beside the
            # parameter.
            "step": tensors[f"step.{name}"].clone(),
            "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device, copy=True),
            "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device, copy=True),
        }
