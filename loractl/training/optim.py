"""The optimizer, its parameter groups, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loractl.config.optimizers import OptimizerKind, Part
from loractl.training import bitsandbytes_optim
from loractl.training.lion import Lion

Schedule = Callable[[float], float]

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""Fraction of the learning rate left when a fraction `done` of the steps after warmup is done."""


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of each step: linear warmup to `peak`, then decay by the schedule."""

    peak: float
    schedule: str
    warmup: float  # below 1: a fraction of the steps; else a number of steps
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


@dataclass(frozen=True)
class Rates:
    """The settings in which parameter groups differ."""

    learning_rate: float
    weight_decay: float
    lora_plus_ratio: float = 1.0


Build = Callable[[list[dict[str, Any]], float, bool | None], torch.optim.Optimizer]
"""(groups, learning rate, whether to use one fused kernel) -> an optimizer."""

RELATIVE_FROM = 1.0
"""Adafactor's step relative to a parameter: its learning rate times the largest of this and the
root mean square of the parameter's values. With torch's own 1e-3, B, which starts at zero, would
move a thousandth of the learning rate a step; A's values are below 1, so this makes the learning
rate what it is in AdamW and in transformers' Trainer (scale_parameter=False)."""

BUILDERS: dict[str, Build] = {
    "adamw": lambda groups, rate, fused: torch.optim.AdamW(groups, lr=rate, fused=fused),
    "adamw-8bit": lambda groups, rate, _: bitsandbytes_optim.build("AdamW8bit", groups, rate),
    "adamw-paged": lambda groups, rate, _: bitsandbytes_optim.build("PagedAdamW", groups, rate),
    "sgd": lambda groups, rate, _: torch.optim.SGD(groups, lr=rate),
    "adafactor": lambda groups, rate, _: torch.optim.Adafactor(
        groups, lr=rate, eps=(None, RELATIVE_FROM)
    ),
    "lion": lambda groups, rate, _: Lion(groups, rate),
}
"""The optimizers of config/optimizers."""


def build_optimizer(
    name: str,
    parameters: Mapping[str, nn.Parameter],
    rates: Rates,
    *,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over named parameters; biases and norms (one dimension) are not decayed, nor are
    the rows of single tokens, whose decay would end in the embedding of nothing.

    Each group has a `ratio` by which the learning rate is multiplied for it. LoRA+ (arXiv
    2402.12354) sets it to `lora_plus_ratio` for B and vectors, grouped as by its authors and PEFT,
    and to 1 for the rest. `fused` None: one kernel for all parameters if all are on a GPU.
    """
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, parameter in parameters.items():
        vector = parameter.dim() <= 1
        ratio = rates.lora_plus_ratio if vector or is_B(path) else 1.0
        decay = 0.0 if vector or is_token_rows(path) else rates.weight_decay
        members.setdefault((ratio, decay), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": group, "weight_decay": decay, "ratio": ratio, "lr": ratio * rates.learning_rate}
        for (ratio, decay), group in members.items()
    ]
    if fused is None:
        fused = all(parameter.is_cuda for parameter in parameters.values()) or None
    return BUILDERS[name](groups, rates.learning_rate, fused)


def set_rate_(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of the next step, multiplied by each group's ratio."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["ratio"]


def is_B(name: str) -> bool:
    """Whether a parameter, by its PEFT name, is the B of a linear layer.

    The B of an embedding does not count: its input is one-hot, so the widths that LoRA+ reasons
    with are not those of its A and B. Both use the plain rate (PEFT's fixed 1e-6 trains nothing).
    """
    return ".lora_B." in name


def is_token_rows(name: str) -> bool:
    """Whether a parameter, by its PEFT name, is the rows of tokens in an embedding or a head."""
    return name.endswith(".trainable_tokens_delta")


def state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """An optimizer's state as flat tensors on the CPU: `<what>.<parameter>`, and `<what>` alone for
    a table that all parameters share."""
    tables = _tables_of(optimizer)
    found: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        for what, value in optimizer.state[parameter].items():
            key = what if what in tables else f"{what}.{name}"
            found[key] = torch.as_tensor(value).detach().cpu().contiguous()
    return found


def _tables_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The names of the tables that give 8-bit codes their meaning; one for all parameters."""
    return ("qmap1", "qmap2") if hasattr(optimizer, "name2qmap") else ()


def restore_state_(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    kind: OptimizerKind,
) -> None:
    """Restore what `state_tensors` returned, by the names of `kind`.

    Raises KeyError if a part is missing, does not belong to that optimizer or has another shape.
    """
    tables = {what for what, _ in kind.shared}
    parts = {name: kind.parts(tuple(one.shape)) for name, one in parameters.items()}
    known = {f"{what}.{name}" for name in parameters for what in parts[name]} | tables
    if unread := sorted(tensors.keys() - known):
        raise KeyError(f"{unread[0]}: not part of this optimizer's state")
    for name, parameter in parameters.items():
        if not any(f"{what}.{name}" in tensors for what in parts[name]):
            # In fp16 every step so far may have been skipped: no parameter has state yet
            continue
        saved = {what: tensors[f"{what}.{name}"] for what in parts[name]}
        for what, part in parts[name].items():
            if tuple(saved[what].shape) != part.shape:
                raise KeyError(f"{what}.{name}: {tuple(saved[what].shape)}, not {part.shape}")
        if kind.package is None:
            optimizer.state[parameter] = _torch_state(optimizer, parameter, saved, parts[name])
            continue
        state = bitsandbytes_optim.start_state_(optimizer, parameter)
        for what, value in saved.items():
            state[what] = state[what].copy_(value) if value.dim() else int(value)
        for what in tables & state.keys():
            state[what] = tensors[what].to(parameter.device)


def _torch_state(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    saved: Mapping[str, torch.Tensor],
    parts: Mapping[str, Part],
) -> dict[str, torch.Tensor]:
    # The step count lives on the CPU in torch's default AdamW; in the fused one it is on the
    # parameter's device, like the averages.
    device = parameter.device if optimizer.defaults.get("fused") else "cpu"
    state: dict[str, torch.Tensor] = {}
    for what, part in parts.items():
        if part.shape == ():
            state[what] = saved[what].to(device, copy=True)
        elif part.shape == tuple(parameter.shape):  # lies in memory as its parameter does
            state[what] = torch.empty_like(parameter).copy_(saved[what])
        else:
            state[what] = saved[what].to(parameter.device, copy=True)
    return state
