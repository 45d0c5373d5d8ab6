"""Lion: every value moves by the learning rate, in the direction of a running mean's sign."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

BETAS = (0.9, 0.99)
"""Those of its authors: for the direction, and for the mean that is kept."""


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of arXiv 2302.06675, with decoupled weight decay and one tensor of state."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float] = BETAS,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "the loop computes the loss"
        for group in self.param_groups:
            rate, (beta1, beta2) = group["lr"], group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                gradient, average = parameter.grad, state["exp_avg"]
                direction = average.mul(beta1).add_(gradient, alpha=1 - beta1).sign_()
                parameter.mul_(1 - rate * group["weight_decay"]).add_(direction, alpha=-rate)
                average.mul_(beta2).add_(gradient, alpha=1 - beta2)
