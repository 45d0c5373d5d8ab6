"""Whether a run's optimizer exists where it runs, does there what its name says, and learns at its
rate."""

from collections.abc import Sequence

import torch

from loractl import console
from loractl.config.loader import Loaded
from loractl.config.optimizers import OPTIMIZERS, PAGED, SMALL, Shape
from loractl.errors import ModelError
from loractl.models.device import choose_device, n_gpus
from loractl.reports.findings import Finding

FAR = 10
"""A learning rate this many times above or below the rule is far from it."""
LEAST_OF_SGD = 0.01
"""Gradients are clipped to train.max_grad_norm, so all weights together move by no more than that
times the rate: a tenth of what SGD needs at least."""


def device_for(loaded: Loaded) -> torch.device:
    """The device to train on, where the optimizer exists. Raises ConfigError."""
    wanted = loaded.config.device
    try:
        device = choose_device(wanted)
    except ModelError as error:
        raise loaded.error("device", str(error)) from None
    require_optimizer(loaded, device.type)
    if wanted == "auto" and (count := n_gpus()) > 1:
        console.note(f"note: this run uses one of {count} GPUs, {device}; device: names another")
    return device


def require_optimizer(loaded: Loaded, device: str) -> None:
    """Raise ConfigError if the optimizer does not exist on this type of device."""
    name = loaded.config.train.optimizer
    if device in OPTIMIZERS[name].devices:
        return
    there = ", ".join(one for one, kind in OPTIMIZERS.items() if device in kind.devices)
    message = f"{name} does not exist on {device}, expected one of {there}; set one of them"
    raise loaded.error("train.optimizer", message)


def judge_optimizer(name: str, device: str, shapes: Sequence[Shape]) -> Finding:
    """Whether the state is stored as the optimizer's name says. `shapes`: of what is trained."""
    kind = OPTIMIZERS[name]
    parts = [part for shape in shapes for part in kind.parts(shape).values()]
    what, adamw = "optimizer", "this is AdamW in 32 bits, as train.optimizer: adamw is"
    if name == "adamw-8bit" and not any(part.dtype == "uint8" for part in parts):
        few = f"every trained tensor has fewer than {SMALL:,} values, whose state has 32 bits"
        return Finding("note", what, f"{name}: {few}: {adamw}")
    if name == "adamw-paged" and device == "cpu":
        return Finding("note", what, f"{name}: without a GPU there is nothing to page: {adamw}")
    if name == "adamw-paged" and not any(part.paged for part in parts):
        few = f"no trained tensor has {PAGED:,} values, from which on its state is paged"
        return Finding("note", what, f"{name}: {few}: {adamw}")
    return Finding("ok", what, name)


def judge_rate(rate: float, method: str, usual: float, optimizer: str = "adamw") -> Finding:
    """Compare the learning rate with the rule for the method, the width of the model (`usual`, for
    AdamW) and the optimizer."""
    what, times_adamw = "learning rate", OPTIMIZERS[optimizer].rate
    if times_adamw is None:
        if rate >= LEAST_OF_SGD:
            return Finding("ok", what, f"{rate:g}; there is no rule for {optimizer}")
        return Finding(
            "note",
            what,
            f"{rate:g} is a rate for adamw, at which {optimizer} learns next to nothing: a step"
            " moves all weights together by at most this times train.max_grad_norm; set"
            " train.learning_rate to between 0.1 and 1",
        )
    usual *= times_adamw
    rule = f"the rule for method: {method} on this model gives {usual:.2g}"
    if times_adamw != 1:
        rule += f" with {optimizer}, {times_adamw:g} times that of adamw"
    times = rate / usual
    # Above, the limit of another optimizer is where AdamW's rate is
    if 1 / FAR <= times <= (FAR if times_adamw == 1 else 0.9 / times_adamw):
        return Finding("ok", what, f"{rate:g}; {rule}")
    how = f"{times:,.0f} times" if times > 1 else f"1/{1 / times:,.0f} of" if times else "not"
    why = "training may diverge" if times > 1 else "little may be learned"
    why = why if times else "nothing is learned"
    return Finding(
        "note",
        what,
        f"{rate:g} is {how} what is usual, so {why}: {rule}; set train.learning_rate: {usual:.2g}",
    )
