"""Head and loss in one pass are `F.cross_entropy` of all the logits, loss and gradients alike."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from loractl.ops import chunks
from loractl.ops.chunks import CHUNK_ROWS, STRIP_ROWS
from loractl.ops.cross_entropy import Head, head_loss, head_losses

WIDTH, VOCABULARY = 24, 301
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.0625},
    "softcap": {"softcap": 3.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 3.0},
}


def made(n: int, *, bias: bool = False, dtype: torch.dtype = torch.float32, **form: Any) -> Any:
    """(hidden (n, WIDTH), head, targets), all of it to be trained; logits of a few units."""
    generator = torch.Generator().manual_seed(n)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    hidden, weight = draw(n, WIDTH).requires_grad_(), draw(VOCABULARY, WIDTH).requires_grad_()
    head = Head(weight, draw(VOCABULARY).requires_grad_() if bias else None, **form)
    return hidden, head, torch.randint(0, VOCABULARY, (n,), generator=generator)


def weights_of(n: int) -> Tensor:
    """Weights from 0 to 3, some of them 0 and some 1."""
    drawn = 3 * torch.rand(n, generator=torch.Generator().manual_seed(n + 1))
    drawn[::5], drawn[1::7] = 0.0, 1.0
    return drawn


def naive(hidden: Tensor, head: Head, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """The sum from all logits, in float64."""
    exact = replace(
        head, weight=head.weight.double(), bias=None if head.bias is None else head.bias.double()
    )
    each = F.cross_entropy(exact.logits(hidden), targets, reduction="none")
    return (each if weights is None else each * weights.double()).sum()


def gradients(
    loss: Any,
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    weights: Tensor | None = None,
    times: float = 1.0,
) -> Any:
    """(loss, gradients of hidden, weight and bias) as float64."""
    given = [t for t in (hidden, head.weight, head.bias) if t is not None]
    total = loss(hidden, head, targets, weights)
    found = torch.autograd.grad(total * times, given)
    return float(total.detach()), [g.double() for g in found]


def assert_near(found: list[Tensor], expected: list[Tensor], part: float) -> None:
    """Within a part of the largest value."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=part * float(b.abs().max()))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [1, 31, 64, 203])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_those_of_all_logits(
    form: str, n: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 1)  # 203 rows: four chunks, the last one shorter
    given = (*made(n, **FORMS[form]), weights_of(n) if weighted else None)
    loss, found = gradients(head_loss, *given, times=0.3)
    expected, grads = gradients(naive, *given, times=0.3)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert_near(found, grads, 2e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bit_they_are_no_further_from_float64_than_those_of_all_logits(
    dtype: torch.dtype, form: str, weighted: bool
) -> None:
    def plain(hidden: Tensor, head: Head, targets: Tensor, weights: Tensor | None) -> Tensor:
        each = F.cross_entropy(head.logits(hidden).float(), targets, reduction="none")
        return (each if weights is None else each * weights).sum()

    def exact(hidden: Tensor, head: Head, targets: Tensor, weights: Tensor | None) -> Tensor:
        return naive(hidden.double(), head, targets, weights)

    given = (*made(40, dtype=dtype, **FORMS[form]), weights_of(40) if weighted else None)
    loss, found = gradients(head_loss, *given)
    rounded, grads = gradients(plain, *given)
    expected, best = gradients(exact, *given)
    eps = torch.finfo(dtype).eps
    assert abs(loss - expected) <= 1.2 * abs(rounded - expected) + eps * expected / 10
    for ours, theirs, right in zip(found, grads, best, strict=True):
        assert float((ours - right).norm()) <= 1.2 * float((theirs - right).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_of_1_change_no_bit_and_only_their_share_of_the_sum_counts(
    dtype: torch.dtype,
) -> None:
    given = made(40, dtype=dtype)
    loss, found = gradients(head_loss, *given, times=1 / 40)
    same, ones = gradients(head_loss, *given, torch.ones(40), times=1 / 40)
    assert same == loss and all(torch.equal(a, b) for a, b in zip(ones, found, strict=True))
    for size in (1e-30, 1e30):  # float16 alone would hold neither
        other, scaled = gradients(head_loss, *given, torch.full((40,), size), times=1 / size / 40)
        assert other / size == pytest.approx(loss, rel=1e-6)
        for ours, plain in zip(scaled, found, strict=True):
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(ours, plain, rtol=eps, atol=1e-6 * float(plain.abs().max()))


def test_a_row_of_weight_0_is_as_if_it_were_not_there() -> None:
    hidden, head, targets = made(20, bias=True)
    weights = torch.ones(20)
    weights[7:] = 0
    loss, found = gradients(head_loss, hidden, head, targets, weights)
    first = lambda h, *given: head_loss(h[:7], *given)  # noqa: E731
    alone, expected = gradients(first, hidden, head, targets[:7])
    assert loss == pytest.approx(alone, rel=1e-6) and not found[0][7:].any()
    assert_near(found, expected, 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_losses_of_rows_are_those_of_all_logits(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 1)
    hidden, head, targets = made(203, **FORMS[form])
    found = head_losses(hidden, head, targets)
    exact = F.cross_entropy(head.logits(hidden).double(), targets, reduction="none")
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_a_frozen_head_gets_no_gradient_and_a_frozen_trunk_none() -> None:
    hidden, head, targets = made(5, bias=True)
    weight, bias = head.weight.detach(), head.bias.detach()
    head_loss(hidden, Head(weight, bias), targets).backward()
    assert hidden.grad is not None and weight.grad is None and bias.grad is None
    head_loss(hidden.detach(), Head(head.weight, bias), targets).backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(
        head.weight.grad, torch.autograd.grad(naive(hidden, head, targets), head.weight)[0]
    )


def test_no_rows_have_no_loss_and_a_gradient_of_zeros() -> None:
    hidden, head, targets = made(0)
    loss = head_loss(hidden, head, targets)
    loss.backward()
    assert float(loss.detach()) == 0 and loss.dtype == torch.float32
    assert hidden.grad is not None and hidden.grad.shape == (0, WIDTH)
    assert head.weight.grad is not None and not head.weight.grad.any()


def test_certain_and_hopeless_rows_have_the_loss_that_float64_gives() -> None:
    weight = torch.eye(4) * 200
    loss = head_loss(torch.eye(4)[:2], Head(weight), torch.tensor([0, 3]))
    assert float(loss) == pytest.approx(200, rel=1e-6)
    bad = torch.tensor([[math.nan, 0.0, 0.0, 0.0]])
    assert math.isnan(float(head_loss(bad, Head(weight), torch.tensor([0]))))


def test_small_probabilities_do_not_vanish_in_float16() -> None:
    # one likely id, and 2,000 of probability 2e-8 each, a third of float16's smallest value
    rows = torch.zeros(2001, 8, dtype=torch.float16)
    rows[0, 0], rows[1:, 1] = 17.7, 1.0
    hidden = torch.zeros(1, 8, dtype=torch.float16)
    hidden[0, 0] = 1
    hidden.requires_grad_()
    loss = head_loss(hidden, Head(rows), torch.tensor([0]))
    # A loss scale, as GradScaler has it, brings the gradient back into float16's range.
    (found,) = torch.autograd.grad(loss * 2**14, hidden)
    (expected,) = torch.autograd.grad(
        F.cross_entropy(hidden.double() @ rows.double().T, torch.tensor([0])) * 2**14, hidden
    )
    assert float(expected[0, 1]) > 0.1
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)


class Sizes(TorchDispatchMode):
    """Remembers the largest tensors that operations make, and how many products they are."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = {torch.float32: 0, torch.bfloat16: 0}
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in PRODUCTS
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.dtype in self.bytes:
                size = tensor.numel() * tensor.element_size()
                self.bytes[tensor.dtype] = max(self.bytes[tensor.dtype], size)
        return out


@pytest.mark.usefixtures("nothing_used_again")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_logits_exist_than_a_chunk_and_no_float32_copy_of_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 1)
    hidden, head, targets = made(4 * CHUNK_ROWS, dtype=dtype, softcap=3.0)
    with Sizes() as seen:
        head_loss(hidden, Head(head.weight.detach(), softcap=3.0), targets).backward()
    chunk = CHUNK_ROWS * VOCABULARY * dtype.itemsize
    assert seen.bytes[dtype] == chunk
    if dtype != torch.float32:
        assert seen.bytes[torch.float32] <= STRIP_ROWS * VOCABULARY * 4


def test_without_gradients_the_head_is_multiplied_once() -> None:
    hidden, head, targets = made(8)
    with Sizes() as trained:
        head_loss(hidden, head, targets)
    with Sizes() as asked, torch.no_grad():
        head_loss(hidden, head, targets)
    with Sizes() as frozen:
        loss = head_loss(hidden.detach(), Head(head.weight.detach()), targets)
    assert (trained.products, asked.products, frozen.products) == (3, 1, 1)
    assert not loss.requires_grad
