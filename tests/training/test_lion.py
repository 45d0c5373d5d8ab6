"""Lion takes the steps of its paper, and of bitsandbytes' code for it."""

from typing import Any

import pytest
import torch
from bitsandbytes.optim import Lion32bit
from torch import Tensor, nn

from loractl.training.lion import BETAS, Lion

STEPS = 5


def gradients(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(STEPS)]


def trained(kind: Any, *, decay: float = 0.0) -> Tensor:
    """A parameter after some steps, at rates that change as a schedule's do."""
    parameter = nn.Parameter(torch.linspace(-1, 1, 35).reshape(5, 7).clone())
    optimizer = kind([{"params": [parameter], "weight_decay": decay}], lr=0.1)
    for number, gradient in enumerate(gradients((5, 7))):
        optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_steps_are_those_of_the_paper(decay: float) -> None:
    # Algorithm 2: c = b1 m + (1 - b1) g; w = w - rate (sign(c) + decay w); m = b2 m + (1 - b2) g
    w, m = torch.linspace(-1, 1, 35).reshape(5, 7).double(), torch.zeros(5, 7).double()
    for number, gradient in enumerate(gradients((5, 7))):
        g, rate = gradient.double(), 0.1 / (number + 1)
        c = BETAS[0] * m + (1 - BETAS[0]) * g
        w = w - rate * (c.sign() + decay * w)
        m = BETAS[1] * m + (1 - BETAS[1]) * g
    torch.testing.assert_close(trained(Lion, decay=decay).double(), w, rtol=0, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_steps_are_those_of_bitsandbytes(decay: float) -> None:
    assert torch.equal(trained(Lion, decay=decay), trained(Lion32bit, decay=decay))


def test_what_has_no_gradient_stays_and_keeps_no_state() -> None:
    moved, still = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = Lion([{"params": [moved, still]}], 0.1)
    moved.grad = torch.tensor([1.0, -2.0, 0.0])
    optimizer.step()
    assert moved.tolist() == pytest.approx([0.9, 1.1, 1.0]) and still.tolist() == [1, 1, 1]
    assert still not in optimizer.state or not optimizer.state[still]
