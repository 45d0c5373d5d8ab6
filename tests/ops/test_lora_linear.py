"""The fused layer against its formula written out, its gradients, and what it keeps."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from loractl.ops.dropout import Mask, draw, fallen
from loractl.ops.lora_linear import (
    Linear,
    factor_gradients,
    input_gradient,
    lora_linear,
    masks_of,
    output_gradients,
    project,
    thin_of,
)

D_IN, D_OUT, RANK, SCALE = 12, 7, 3, 1.5


def naive(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float
) -> Tensor:
    return F.linear(x, weight, bias) + scale * F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))


def with_zeros(x: Tensor, mask: Mask | None) -> Tensor:
    """Dropout of x (..., d) as the paper of dropout writes it: a product with zeros and scales."""
    if mask is None:
        return x
    n = x.numel() // x.shape[-1]
    keeps = ~fallen(mask, n, x.shape[-1], device=x.device).view(x.shape)
    return x * keeps / (1 - mask.share)


def made(dtype: torch.dtype, *, bias: bool = True) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(D_OUT, D_IN).to(dtype)
    A, B = torch.randn(RANK, D_IN).requires_grad_(), torch.randn(D_OUT, RANK).requires_grad_()
    return weight, torch.randn(D_OUT).to(dtype) if bias else None, A, B


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_output_and_gradients_are_those_of_the_formula(bias: bool, transposed: bool) -> None:
    weight, b, A, B = made(torch.float32, bias=bias)
    laid = weight.T.contiguous().T if transposed else weight  # as Conv1D's weight lies
    x = torch.randn(2, 5, D_IN, requires_grad=True)
    direction = torch.randn(2, 5, D_OUT)
    found = lora_linear(x, Linear(laid, b, lambda: (A, B), SCALE))
    wanted = naive(x, weight, b, A, B, SCALE)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad((found * direction).sum(), (x, A, B)),
        torch.autograd.grad((wanted * direction).sum(), (x, A, B)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_the_factors_stay_float32_and_so_do_their_gradients() -> None:
    weight, b, A, B = made(torch.bfloat16)
    x = torch.randn(4, D_IN).bfloat16().requires_grad_()
    y = lora_linear(x, Linear(weight, b, lambda: (A, B), SCALE))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert A.grad is not None and B.grad is not None and x.grad is not None
    assert (A.grad.dtype, B.grad.dtype, x.grad.dtype) == (
        torch.float32,
        torch.float32,
        torch.bfloat16,
    )
    exact = [t.detach().double().requires_grad_() for t in (x, A, B)]
    assert b is not None
    naive(exact[0], weight.double(), b.double(), exact[1], exact[2], SCALE).sum().backward()
    for rounded, one in zip((x.grad, A.grad, B.grad), exact, strict=True):
        assert one.grad is not None
        assert (rounded.double() - one.grad).norm() < 0.02 * one.grad.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_only_the_input_and_the_thin_product_are_kept(dropout: float) -> None:
    weight, b, A, B = made(torch.float32)
    x = torch.randn(50, D_IN, requires_grad=True)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        lora_linear(x, Linear(weight, b, lambda: (A, B), SCALE, dropout))
    sizes = sorted(tuple(t.shape) for t in kept)
    assert sizes == sorted([(50, D_IN), (50, RANK), tuple(A.shape), tuple(B.shape)])


@pytest.mark.parametrize("bias", [True, False])
def test_with_dropout_output_and_gradients_are_those_of_the_formula(bias: bool) -> None:
    weight, b, A, B = made(torch.float32, bias=bias)
    x = torch.randn(2, 5, D_IN, requires_grad=True)
    direction = torch.randn(2, 5, D_OUT)
    layer = Linear(weight, b, lambda: (A, B), SCALE, dropout=0.4)
    torch.manual_seed(3)
    [mask] = masks_of([layer])
    torch.manual_seed(3)
    found = lora_linear(x, layer)
    update = F.linear(F.linear(with_zeros(x, mask), A), B)
    wanted = F.linear(x, weight, b) + SCALE * update
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad((found * direction).sum(), (x, A, B)),
        torch.autograd.grad((wanted * direction).sum(), (x, A, B)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.equal(lora_linear(x, layer), found), "the next call has another mask"


@pytest.mark.parametrize("dropout", [(0.0, 0.0, 0.0), (0.3, 0.3, 0.3), (0.3, 0.0, 0.0)], ids=str)
def test_layers_of_one_input_share_a_stacked_product_and_one_may_have_no_adapter(
    dropout: tuple[float, ...],
) -> None:
    torch.manual_seed(1)
    x = torch.randn(6, D_IN, requires_grad=True)
    widths, ranks = (7, 5, 4), (3, 0, 2)
    weights = [torch.randn(width, D_IN) for width in widths]
    pairs = [
        (torch.randn(r, D_IN).requires_grad_(), torch.randn(width, r).requires_grad_())
        if r
        else (None, None)
        for width, r in zip(widths, ranks, strict=True)
    ]
    linears = [Linear(weight, None, None, SCALE) for weight in weights]
    masks = draw(dropout)
    thin = thin_of(linears, pairs, masks, torch.float32)
    with torch.no_grad():
        outputs, t = project(x, linears, thin)
    wanted = [
        F.linear(x, weight)
        if A is None or B is None
        else F.linear(x, weight) + SCALE * F.linear(F.linear(with_zeros(x, mask), A), B)
        for weight, (A, B), mask in zip(weights, pairs, masks, strict=True)
    ]
    directions = [torch.randn_like(one) for one in outputs]
    for ours, theirs in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
    total = sum((one * d).sum() for one, d in zip(wanted, directions, strict=True))
    assert isinstance(total, Tensor)
    total.backward()
    with torch.no_grad():
        u, dBs = output_gradients(directions, thin, t)
        found = factor_gradients(dBs, thin, u, x)
        dx = input_gradient(directions, linears, thin, u)
    torch.testing.assert_close(dx, x.grad, rtol=1e-5, atol=1e-5)
    assert found[1] == (None, None)
    for (dA, dB), (A, B) in zip(found, pairs, strict=True):
        if A is not None and B is not None:
            torch.testing.assert_close(dA, A.grad, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(dB, B.grad, rtol=1e-5, atol=1e-5)
