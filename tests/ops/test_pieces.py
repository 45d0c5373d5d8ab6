"""Each piece against modules of transformers and torch, with the library and without."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

from loractl.ops import native, pieces

ROWS = [(1, 1), (1, 37), (7, 37), (3, 576), (70, 576)]
TRANSFORMERS_NAME = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}
EXTREME = [0.0, -0.0, 1e-30, 0.6, -0.6, 5.0, -5.0, 20.0, -20.0, 90.0, -90.0, 1e4, -1e4]


@pytest.fixture(params=["library", "formula"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The test runs with kernels.c, and once more with the plain formulas."""
    if request.param == "formula":
        monkeypatch.setenv("LORACTL_NATIVE", "0")
    native._find_library.cache_clear()
    given = native.compiled(torch.float32)
    if request.param == "library" and given is None:
        pytest.skip(native.why_missing(torch.float32))
    assert (given is not None) == (request.param == "library")
    yield request.param
    native._find_library.cache_clear()


def both(run: Callable[[], list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """What `run` gives with the library, and with the formulas."""
    results = []
    for value in ("1", "0"):
        monkeypatch.setenv("LORACTL_NATIVE", value)
        native._find_library.cache_clear()
        results.append(run())
    native._find_library.cache_clear()
    return results


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def view(x: Tensor) -> Tensor:
    """The same numbers as a view of a wider buffer, with NaN around them."""
    wider = torch.full((*x.shape[:-1], x.shape[-1] + 5), float("nan"), dtype=x.dtype)
    wider[..., 2:-3] = x
    return wider[..., 2:-3]


def untouched(x: Tensor) -> bool:
    """Whether what lies around a `view` is as it was."""
    assert x._base is not None
    return bool(x._base[..., :2].isnan().all() and x._base[..., -3:].isnan().all())


def close(found: Tensor, expected: Tensor, *, rtol: float = 2e-6, atol: float = 2e-6) -> None:
    expected = expected.to(found.dtype)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, equal_nan=True)


def one_rounding(found: Tensor, expected: Tensor) -> None:
    """bf16 keeps 8 bits: numbers that a rounding tells apart differ by 2^-7 of the greater."""
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=2**-7, atol=1e-30)


# ---- norm


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


# ---- gated


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


@pytest.mark.parametrize("activation", pieces.ACTIVATIONS)
def test_the_curves_of_the_library_keep_their_precision_far_below_zero(
    activation: pieces.Activation,
) -> None:
    low = -80.0 if activation == "silu" else -4.0
    gate = torch.linspace(low, 80, 40_001).unsqueeze(0)
    up = torch.ones_like(gate)
    if native.compiled(torch.float32) is None:
        pytest.skip(native.why_missing(torch.float32))
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


# ---- loss


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
