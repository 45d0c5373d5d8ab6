"""Gated and plain activations against torch and transformers, with the library and without."""

import pytest
import torch
from transformers.activations import ACT2FN

from loractl.ops import native, pieces
from tests.ops.conftest import close, normal, untouched, view

ROWS = [(1, 1), (1, 37), (7, 37), (3, 576), (70, 576)]
TRANSFORMERS_NAME = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}
EXTREME = [0.0, -0.0, 1e-30, 0.6, -0.6, 5.0, -5.0, 20.0, -20.0, 90.0, -90.0, 1e4, -1e4]


@pytest.mark.parametrize("activation", pieces.ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (5, 37), (30, 700)], ids=str)
def test_gated_and_its_gradients_are_those_of_transformers(
    way: str, activation: pieces.Activation, shape: tuple[int, int]
) -> None:
    gate, up, dact = normal(*shape) * 4, normal(*shape, seed=1), normal(*shape, seed=2)
    gate_leaf, up_leaf = (x.double().requires_grad_() for x in (gate, up))
    expected = ACT2FN[TRANSFORMERS_NAME[activation]](gate_leaf) * up_leaf
    expected.backward(dact.double())
    gate_row, up_row, dact_row = view(gate), view(up), view(dact)
    out = view(torch.zeros(shape))
    assert pieces.gated(gate_row, up_row, activation=activation, out=out) is out
    close(out, expected.detach())
    pieces.gated_backward_(dact_row, gate_row, up_row, activation=activation)
    # torch's own gelu loses a few bits where 1 + tanh is next to 0.
    close(gate_row, gate_leaf.grad, atol=2e-6 if way == "library" else 1e-5)
    close(up_row, up_leaf.grad)
    assert torch.equal(dact_row, out)
    assert all(untouched(x) for x in (out, gate_row, up_row, dact_row))


@pytest.mark.parametrize("activation", pieces.ACTIVATIONS)
def test_gated_at_extreme_values_is_what_torch_gives(
    way: str, activation: pieces.Activation
) -> None:
    gate = torch.tensor([[*EXTREME, float("nan"), float("inf")]])
    up = torch.full_like(gate, 2.0)
    leaf = gate.double().requires_grad_()
    expected = ACT2FN[TRANSFORMERS_NAME[activation]](leaf) * 2
    expected.backward(torch.ones_like(leaf))
    dact = torch.ones_like(gate)
    found = pieces.gated(gate, up, activation=activation)
    if way == "formula" and found[0, -1].isnan():  # torch's gelu, in its code for AVX-512
        assert ACT2FN[TRANSFORMERS_NAME[activation]](gate)[0, -1].isnan()
        found, expected = found[:, :-1], expected[:, :-1]
    close(found, expected.detach())
    pieces.gated_backward_(dact, gate, up, activation=activation)
    close(gate[:, :-1], leaf.grad[:, :-1])  # where the gate is infinite, forms differ: 1 or NaN


@pytest.mark.native
@pytest.mark.parametrize("activation", pieces.ACTIVATIONS)
def test_the_curves_of_the_library_keep_their_precision_far_below_zero(
    activation: pieces.Activation,
) -> None:
    low = -80.0 if activation == "silu" else -4.0
    gate = torch.linspace(low, 80, 40_001).unsqueeze(0)
    up = torch.ones_like(gate)
    assert native.compiled(torch.float32) is not None
    found = pieces.gated(gate, up, activation=activation)
    g = gate.double()
    if activation == "silu":
        exact = g * torch.sigmoid(g)
    elif activation == "gelu":
        exact = g * torch.special.erfc(-g / 2**0.5) / 2
    else:
        exact = g * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (g + 0.044715 * g**3))
    worst = ((found - exact) / exact).abs().nan_to_num().max()
    assert worst < (4e-7 if activation == "silu" else 2e-6)


# ---- activation alone


@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("activation", pieces.ACTIVATIONS)
def test_an_activation_and_its_gradient_are_those_of_transformers(
    way: str, activation: pieces.Activation, shape: tuple[int, int]
) -> None:
    x, dy = normal(*shape) * 4, normal(*shape, seed=1)
    leaf = x.double().requires_grad_()
    expected = ACT2FN[TRANSFORMERS_NAME[activation]](leaf)
    expected.backward(dy.double())
    rows, out = view(x), view(torch.zeros(shape))
    assert pieces.activated(rows, activation=activation, out=out) is out
    close(out, expected.detach())
    dx = view(dy)
    assert pieces.activated_backward(dx, rows, activation=activation, out=dx) is dx
    close(dx, leaf.grad, atol=2e-6 if way == "library" else 1e-5)
    assert untouched(out) and untouched(dx) and torch.equal(rows, x)
