"""Norms and rotary angles against transformers, with the library and without; all at once."""

import pytest
import torch
from torch import Tensor
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

from loractl.ops import pieces
from tests.ops.conftest import both, close, normal, one_rounding, untouched, view

ROWS = [(1, 1), (1, 37), (7, 37), (3, 576), (70, 576)]


def norm_module(kind: str, weight: Tensor) -> torch.nn.Module:
    width = weight.shape[0]
    module = (
        modeling_llama.LlamaRMSNorm(width, eps=1e-5)
        if kind == "llama"
        else Gemma3RMSNorm(width, eps=1e-5)
    )
    module.to(weight.dtype).weight.data.copy_(weight)
    return module


@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize(("kind", "offset"), [("llama", 0.0), ("gemma", 1.0)])
def test_a_norm_and_its_gradient_are_those_of_transformers(
    way: str, kind: str, offset: float, shape: tuple[int, int]
) -> None:
    x, weight, dy, before = (
        normal(*shape) * 3, normal(shape[1], seed=1), normal(*shape, seed=2), normal(*shape, seed=3)
    )  # fmt: skip
    leaf = x.clone().requires_grad_()
    expected = norm_module(kind, weight)(leaf)
    expected.backward(dy)
    rows, out, dx = view(x), view(torch.zeros(shape)), view(before)
    y, rstd = pieces.rms_norm(rows, weight, 1e-5, offset=offset, out=out)
    assert y is out and rstd.shape == shape[:1]
    close(y, expected.detach())
    close(rstd, (x.double().pow(2).mean(-1) + 1e-5).rsqrt())
    pieces.rms_norm_backward_(dx, view(dy), rows, rstd, weight, offset=offset)
    close(dx, before + leaf.grad)
    assert untouched(out) and untouched(dx) and torch.equal(rows, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_done_again_gives_the_same_bits(way: str, offset: float, dtype: torch.dtype) -> None:
    x, weight = normal(9, 100, dtype=dtype), normal(100, seed=1, dtype=dtype)
    y, rstd = pieces.rms_norm(x, weight, 1e-6, offset=offset)
    assert torch.equal(y, pieces.rms_norm_again(x, rstd, weight, offset=offset))


def test_a_norm_of_heads_in_a_wider_buffer_is_that_of_each_head(way: str) -> None:
    qkv, weight, dy = normal(6, 5 * 16), normal(16, seed=1), normal(6, 3, 16, seed=2)
    heads = qkv[:, 16:64].unflatten(1, (3, 16))
    flat = heads.reshape(-1, 16)
    y, rstd = pieces.rms_norm(heads, weight, 1e-6)
    expected, flat_rstd = pieces.rms_norm(flat, weight, 1e-6)
    assert torch.equal(y.flatten(0, 1), expected) and torch.equal(rstd.flatten(), flat_rstd)
    dx = torch.zeros(6, 80)
    pieces.rms_norm_backward_(dx[:, :48].unflatten(1, (3, 16)), dy, heads, rstd, weight)
    flat_dx = torch.zeros(18, 16)
    pieces.rms_norm_backward_(flat_dx, dy.flatten(0, 1), flat, flat_rstd, weight)
    assert torch.equal(dx[:, :48].reshape(18, 16), flat_dx) and not dx[:, 48:].any()
    pieces.rms_norm(heads, weight, 1e-6, out=heads)  # in place
    assert torch.equal(heads.reshape(-1, 16), expected)


@pytest.mark.parametrize(("kind", "offset"), [("llama", 0.0), ("gemma", 1.0)])
def test_a_norm_in_bf16_rounds_where_transformers_does(way: str, kind: str, offset: float) -> None:
    x, weight = normal(4, 64, dtype=torch.bfloat16), normal(64, seed=1, dtype=torch.bfloat16)
    y, _ = pieces.rms_norm(x, weight, 1e-5, offset=offset)
    expected = norm_module(kind, weight)(x).detach()
    assert (y != expected).sum() <= 2  # a tie that the last bit of rstd decides
    one_rounding(y, expected)


# ---- rotary


def angles(n: int, rot: int) -> tuple[Tensor, Tensor]:
    half = normal(n, rot // 2, seed=5) * 3
    both_halves = torch.cat((half, half), dim=-1)
    return both_halves.cos() * 1.1, both_halves.sin() * 1.1  # YaRN scales both


@pytest.mark.parametrize(("width", "rot"), [(16, 16), (64, 64), (20, 12), (6, 2), (10, 10)])
@pytest.mark.parametrize("n", [1, 13])
def test_rotary_turns_as_transformers_does_and_inverse_is_its_gradient(
    way: str, n: int, width: int, rot: int
) -> None:
    module = modeling_llama if rot == width else modeling_gpt_neox
    x, dy, (cos, sin) = normal(n, 3, width), normal(n, 3, width, seed=1), angles(n, rot)
    leaf = x.clone().requires_grad_()
    expected, _ = module.apply_rotary_pos_emb(leaf, leaf, cos, sin, unsqueeze_dim=1)
    expected.backward(dy)
    turned, gradient = view(x), view(dy)
    pieces.rotary_(turned, cos, sin)
    pieces.rotary_(gradient, view(cos), view(sin), inverse=True)
    close(turned, expected.detach())
    close(gradient, leaf.grad)
    assert untouched(turned) and untouched(gradient)


def test_the_inverse_of_rotary_is_the_transpose_where_the_two_halves_have_other_angles(
    way: str,
) -> None:
    cos, sin = normal(4, 8, seed=1), normal(4, 8, seed=2)
    x, y = normal(4, 2, 8, seed=3), normal(4, 2, 8, seed=4)
    turned, back = x.clone(), y.clone()
    pieces.rotary_(turned, cos, sin)
    pieces.rotary_(back, cos, sin, inverse=True)
    close((turned * y).sum(), (x * back).sum(), rtol=1e-5)


def test_rotary_takes_angles_in_bf16_for_heads_in_bf16(way: str) -> None:
    cos, sin = (angle.bfloat16() for angle in angles(5, 8))
    x = normal(5, 2, 8, dtype=torch.bfloat16)
    exact, _ = modeling_llama.apply_rotary_pos_emb(
        x.double(), x.double(), cos.double(), sin.double()
    )
    pieces.rotary_(x, cos, sin)
    torch.testing.assert_close(x.double(), exact, rtol=2**-8, atol=1e-6)


# ---- all


def every_piece(dtype: torch.dtype) -> list[Tensor]:
    """What each piece gives for the same random numbers, large enough for several threads."""
    x, w, dy, dx = (normal(60, 300, seed=i, dtype=dtype) for i in range(4))
    w = w[0].contiguous()
    results = []
    for offset in (0.0, 1.0):
        y, rstd = pieces.rms_norm(x, w, 1e-6, offset=offset)
        gradient = dx.clone()
        pieces.rms_norm_backward_(gradient, dy, x, rstd, w, offset=offset)
        results += [y, gradient]
    heads = normal(40, 9, 64, dtype=dtype)
    cos, sin = angles(40, 64)
    pieces.rotary_(heads, cos, sin)
    results.append(heads)
    for activation in pieces.ACTIVATIONS:
        d, gate, up = dy.clone(), x.clone(), dx.clone()
        results.append(pieces.gated(gate, up, activation=activation))
        pieces.gated_backward_(d, gate, up, activation=activation)
        results += [d, gate, up]
        results.append(pieces.activated(x, activation=activation))
        results.append(pieces.activated_backward(dy, x, activation=activation))
    for softcap in (None, 5.0):
        logits = normal(9, 3000, dtype=dtype)
        targets = torch.arange(9)
        results += [pieces.softmax_loss_(logits, targets, softcap=softcap), logits]
    return results


@pytest.mark.native
def test_in_bf16_the_library_and_the_formulas_differ_by_one_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for found, expected in zip(
        *both(lambda: every_piece(torch.bfloat16), monkeypatch), strict=True
    ):
        if found.dtype == torch.float32:  # losses
            close(found, expected)
        else:
            off = (found != expected).float().mean()
            assert off < 0.01, off
            torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-9)


def test_bf16_rounds_to_the_nearest_even_and_keeps_what_is_no_number(way: str) -> None:
    nan, inf = float("nan"), float("inf")
    dact = normal(1, 50_000, dtype=torch.bfloat16)
    up = normal(1, 50_000, seed=1, dtype=torch.bfloat16)
    up[0, ::4] = 1.5  # products that lie in the middle between two numbers
    dact[0, :6] = torch.tensor([3e38, -3e38, inf, -inf, nan, 1.0])
    up[0, :6] = torch.tensor([1.125, 1.125, 1.0, 1.0, 1.0, nan])
    exact = dact.float() * up.float()
    gate = torch.full_like(up, 1e3)  # there silu has slope 1
    pieces.gated_backward_(dact, gate, up, activation="silu")
    torch.testing.assert_close(gate, exact.bfloat16(), rtol=0, atol=0, equal_nan=True)
    full = torch.full((1, 16), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    heads = torch.ones(1, 1, 16, dtype=torch.bfloat16)
    pieces.rotary_(heads, full, full)  # a NaN whose rounding would carry into the sign
    assert heads.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_numbers_do_not_depend_on_the_number_of_threads(way: str, dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = every_piece(dtype)
        torch.set_num_threads(3)
        three = every_piece(dtype)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, three, strict=True):
        if way == "library":
            assert torch.equal(a, b)
        else:  # torch's sums do, where a processor has AVX-512
            close(a, b, rtol=2e-6 if a.dtype == torch.float32 else 2**-7)
    with open("/proc/self/maps", encoding="utf-8") as file:
        openmp = {line.split()[-1] for line in file if "libgomp" in line or "libomp" in line}
    assert len(openmp) == 1


def test_other_dtypes_and_columns_that_lie_apart_are_calculated_by_the_formula() -> None:
    x, w = normal(4, 6).double(), normal(6).double()
    y, rstd = pieces.rms_norm(x, w, 1e-6)
    assert y.dtype == torch.float64 and rstd.dtype == torch.float32
    apart = normal(6, 4).t()
    close(
        pieces.rms_norm(apart, w.float(), 1e-6)[0],
        pieces.rms_norm(apart.contiguous(), w.float(), 1e-6)[0],
    )
