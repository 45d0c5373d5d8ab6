"""The optimizers of bitsandbytes, the only place that imports them: what they do quietly is undone
here, and what they say is said in our words elsewhere (`engine/prospects.py`)."""

from typing import Any

import torch
from torch import nn

from loractl.startup.compile_later import compiling_later


def build(kind: str, groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    """An optimizer of the class `kind`, for parameters that lie in one piece.

    Its kernels read memory in order, and make a parameter contiguous at its first step, but not the
    state made for it just before: saved and restored, that state would be in another order.
    """
    with compiling_later():
        from bitsandbytes import optim

    for group in groups:
        for parameter in group["params"]:
            parameter.data = parameter.data.contiguous()
    optimizer: torch.optim.Optimizer = getattr(optim, kind)(groups, lr=learning_rate)
    # The paged ones warn at the first step on a CPU, where they are not paged.
    optimizer._cpu_paged_warned = True  # type: ignore[attr-defined]
    return optimizer


def start_state_(optimizer: Any, parameter: nn.Parameter) -> dict[str, Any]:
    """The state with which a parameter would start: in its precision, and paged where it is so."""
    places = {
        id(one): (group, at, inside)
        for at, group in enumerate(optimizer.param_groups)
        for inside, one in enumerate(group["params"])
    }
    group, at, inside = places[id(parameter)]
    optimizer.init_state(group, parameter, at, inside)
    state: dict[str, Any] = optimizer.state[parameter]
    return state
