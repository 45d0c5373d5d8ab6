"""The loss of logits and its gradient against cross entropy, with the library and without."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loractl.ops import pieces
from tests.ops.conftest import close, normal, untouched, view


def exact_loss(
    logits: Tensor, targets: Tensor, *, scale: float, softcap: float | None, factor: float
) -> tuple[Tensor, Tensor]:
    leaf = logits.double().requires_grad_()
    z = leaf * scale
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    losses = F.cross_entropy(z, targets, reduction="none")
    (losses.sum() * factor).backward()
    assert leaf.grad is not None
    return losses.detach(), leaf.grad


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1001), (2, 4096), (5, 5003)], ids=str)
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 30.0)])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_losses_and_gradients_are_those_of_cross_entropy(
    way: str, shape: tuple[int, int], scale: float, softcap: float | None, size: float
) -> None:
    logits = normal(*shape) * size
    targets = torch.randint(shape[1], shape[:1], generator=torch.Generator().manual_seed(1))
    losses, gradients = exact_loss(logits, targets, scale=scale, softcap=softcap, factor=0.3)
    kept, row = view(logits), view(logits)
    alone = pieces.softmax_loss_(kept, targets, scale=scale, softcap=softcap, gradient=False)
    assert torch.equal(kept, logits)
    found = pieces.softmax_loss_(row, targets, scale=scale, softcap=softcap, factor=0.3)
    assert found.dtype == torch.float32 and torch.equal(found, alone)
    close(found, losses, rtol=3e-6, atol=3e-6)
    close(row, gradients, rtol=1e-5, atol=1e-7)
    assert untouched(row)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_losses_of_extreme_logits_are_exact(way: str, softcap: float | None) -> None:
    inf = float("inf")
    logits = normal(7, 5000)
    logits[0, 4500] = 1e4
    logits[1] = -1e4
    logits[2] *= 1e4
    logits[3, :4096] = -inf  # whole blocks before the first finite number,
    logits[3, 4096:] = -1e4  # which lies far below 0
    logits[4, 1:] = -inf
    logits[5, 10] = -inf
    logits[6] = 88.5
    targets = torch.tensor([4500, 3, 7, 4999, 0, 10, 4999])
    losses, gradients = exact_loss(logits, targets, scale=1.0, softcap=softcap, factor=1.0)
    found = pieces.softmax_loss_(logits, targets, softcap=softcap)
    close(found, losses, rtol=1e-6, atol=3e-6)
    close(logits, gradients, rtol=1e-5, atol=1e-7)


def test_a_logit_that_is_no_number_makes_a_loss_that_is_none(way: str) -> None:
    nan, inf = float("nan"), float("inf")
    logits = normal(4, 3000)
    logits[0, 0] = nan
    logits[1, 2999] = nan
    logits[2, 5] = inf
    logits[3, :] = -inf
    rest = normal(1, 3000, seed=1)
    targets = torch.tensor([1, 2, 3, 4, 5])
    losses = pieces.softmax_loss_(torch.cat((logits, rest)), targets)
    assert losses[:4].isnan().all() and losses[4].isfinite()


@pytest.mark.parametrize("target", [-1, -100, 9])
def test_a_target_outside_the_vocabulary_is_refused(way: str, target: int) -> None:
    with pytest.raises(AssertionError):
        pieces.softmax_loss_(normal(2, 9), torch.tensor([0, target]))


def test_no_rows_give_no_losses(way: str) -> None:
    losses = pieces.softmax_loss_(normal(0, 9), torch.zeros(0, dtype=torch.int64))
    assert losses.shape == (0,)
