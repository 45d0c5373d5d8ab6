"""Head and loss with rows of its own: loss and gradients of one weight that has these rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loractl.ops.chunks import CHUNK_ROWS, STRIP_ROWS
from loractl.ops.cross_entropy import Head, head_loss, head_losses
from loractl.ops.own_rows import OwnRows

WIDTH, VOCABULARY = 24, 301
INDICES = [300, 2, 299, 7]  # in any order, old tokens too


def made(n: int, dtype: torch.dtype = torch.float32, **form: Any) -> tuple[Tensor, Head, Tensor]:
    generator = torch.Generator().manual_seed(n)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden = draw(n, WIDTH).to(dtype).requires_grad_()
    own = OwnRows(draw(len(INDICES), WIDTH).requires_grad_(), torch.tensor(INDICES))
    targets = torch.randint(0, VOCABULARY, (n,), generator=generator)
    if n > 3:
        targets[:3] = torch.tensor([300, 2, 299])
    return hidden, Head(draw(VOCABULARY, WIDTH).to(dtype), own=own, **form), targets


def exact(hidden: Tensor, head: Head, targets: Tensor) -> tuple[float, Tensor, Tensor]:
    """Loss and gradients of hidden states and rows, from all logits of one weight in float64."""
    assert head.own is not None
    h = hidden.detach().double().requires_grad_()
    rows = head.own.rows.detach().to(hidden.dtype).double().requires_grad_()
    weight = head.weight.detach().double().index_copy(0, head.own.indices, rows)
    merged = replace(head, weight=weight, own=None)
    loss = F.cross_entropy(merged.logits(h), targets, reduction="sum")
    of_hidden, of_rows = torch.autograd.grad(loss, (h, rows))
    return float(loss.detach()), of_hidden, of_rows


@pytest.mark.parametrize("form", [{}, {"scale": 0.0625}, {"softcap": 3.0}])
@pytest.mark.parametrize("n", [1, 5, STRIP_ROWS + 3, CHUNK_ROWS + 7])
def test_the_gradients_are_those_of_one_weight(n: int, form: dict[str, Any]) -> None:
    hidden, head, targets = made(n, **form)
    assert head.own is not None
    loss = head_loss(hidden, head, targets)
    of_hidden, of_rows = torch.autograd.grad(loss * 0.25, (hidden, head.own.rows))
    expected, e_hidden, e_rows = exact(hidden, head, targets)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    for found, wanted in ((of_hidden, e_hidden), (of_rows, e_rows)):
        off = (found.double() - 0.25 * wanted).abs().max()
        assert off <= 1e-5 * float(wanted.abs().max())
    assert float(head_losses(hidden.detach(), head, targets).sum()) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_the_gradient_of_the_rows_is_float32(dtype: torch.dtype) -> None:
    hidden, head, targets = made(50, dtype)
    assert head.own is not None
    (of_rows,) = torch.autograd.grad(head_loss(hidden, head, targets), [head.own.rows])
    *_, wanted = exact(hidden, head, targets)
    assert of_rows.dtype == torch.float32
    assert (of_rows.double() - wanted).abs().max() <= 0.02 * float(wanted.abs().max())


def test_rows_that_are_not_trained_cost_no_gradient() -> None:
    hidden, head, targets = made(9)
    assert head.own is not None
    head.own.rows.requires_grad_(False)
    (of_hidden,) = torch.autograd.grad(head_loss(hidden, head, targets), [hidden])
    expected = exact(hidden, head, targets)[1]
    assert (of_hidden.double() - expected).abs().max() <= 1e-5 * float(expected.abs().max())


def test_an_empty_batch_gives_zero() -> None:
    hidden, head, targets = made(0)
    assert head.own is not None
    (of_rows,) = torch.autograd.grad(head_loss(hidden, head, targets), [head.own.rows])
    assert not of_rows.any()
