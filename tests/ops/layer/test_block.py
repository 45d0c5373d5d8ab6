"""A layer computed as a whole by layer.c, against the same layer part by part; that the parts are
what transformers computes is tested in tests/models/fast/test_trunk.py."""

import ctypes
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from loractl.ops import gemm, held_memory, native
from loractl.ops.layer import one_call
from loractl.ops.layer.block import block
from loractl.ops.layer.description import Layer, Norm, Place, Shape
from loractl.ops.lora_linear import Linear
from loractl.ops.packed import Packed
from loractl.ops.segments import segments_of
from tests.ops.test_packed import KINDS, drawn

SHAPE = Shape(heads=4, kv_heads=2, head_dim=16, scaling=0.25, activation="silu")
HIDDEN, INNER = 64, 160
ALL = (8,) * 7


@pytest.fixture(autouse=True)
def seeded(by_c: None) -> None:
    torch.manual_seed(0)


def linear(
    d_in: int, d_out: int, rank: int, *, bias: bool, turned: bool, dropout: float = 0.0
) -> Linear:
    weight = torch.randn(d_out, d_in) / d_in**0.5
    factors = None
    if rank:
        A = nn.Parameter(torch.randn(rank, d_in) / d_in**0.5)
        B = nn.Parameter(torch.randn(d_out, rank) / 10)
        factors = lambda: (A, B)  # noqa: E731
    return Linear(
        weight.T.contiguous().T if turned else weight,
        torch.randn(d_out) if bias else None,
        factors,
        scale=2.0,
        dropout=dropout,
    )


def layer(
    shape: Shape = SHAPE, hidden: int = HIDDEN, inner: int = INNER, ranks: tuple[int, ...] = ALL,
    *, bias: bool = False, turned: bool = False, head_norms: bool = False, offset: float = 0.0,
    dropout: float = 0.0,
) -> Layer:  # fmt: skip
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = ((hidden, q), (hidden, k), (hidden, k), (q, hidden), *[(hidden, inner)] * 2)
    linears = (
        linear(*size, rank, bias=bias, turned=turned, dropout=dropout)
        for size, rank in zip((*sizes, (inner, hidden)), ranks, strict=True)
    )

    def norm(width: int) -> Norm:
        return Norm(torch.rand(width) + 0.5 - offset, 1e-5, offset)

    made = Layer(shape, *linears, before_attention=norm(hidden), before_mlp=norm(hidden))
    if not head_norms:
        return made
    return replace(made, q_norm=norm(shape.head_dim), k_norm=norm(shape.head_dim))


def place(*lengths: int, rotated: int = 16, shared: int = 0) -> Place:
    starts = (shared if number else 0 for number in range(len(lengths)))
    each = [torch.arange(n) + start for n, start in zip(lengths, starts, strict=True)]
    positions = torch.cat(each)[None]
    angles = positions[0][:, None] / 10_000.0 ** torch.arange(0, 1, 2 / rotated)
    angles = torch.cat([angles, angles], dim=1)
    return Place(segments_of(positions, shared), angles.cos(), angles.sin())


def run(x: Tensor, one: Layer, where: Place, *, checkpoint: bool = False) -> list[Tensor]:
    """The output, and the gradients of the input and of all factors."""
    x = x.clone().requires_grad_()
    factors = [t for linear in one.linears if linear.factors for t in linear.factors()]
    for factor in factors:
        factor.grad = None
    torch.manual_seed(1)
    y = block(x, one, where, checkpoint=checkpoint)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
    found = [y.detach(), x.grad, *(factor.grad for factor in factors)]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def whole(x: Tensor, one: Layer, where: Place) -> bool:
    factors = [linear.factors() if linear.factors else (None, None) for linear in one.linears]
    return one_call.Whole.of(x, one, where, factors) is not None


def by_parts(monkeypatch: pytest.MonkeyPatch, again: Callable[[], list[Tensor]]) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(one_call.Whole, "of", lambda *_: None)
        return again()


SMOLLM2 = Shape(heads=9, kv_heads=3, head_dim=64, scaling=0.125, activation="silu")
ODD = Shape(heads=3, kv_heads=1, head_dim=18, scaling=0.3, activation="silu")
CASES = {
    "plain": (layer, place(33, 70, 5)),
    "biases": (lambda: layer(bias=True), place(33, 70, 5)),
    "norms of heads": (lambda: layer(head_norms=True), place(40, 3)),
    "Gemma": (
        lambda: layer(replace(SHAPE, activation="gelu_tanh"), turned=True, offset=1.0),
        place(128, 128),
    ),
    "gelu, no rotary": (
        lambda: layer(replace(SHAPE, activation="gelu", rotary=False)),
        place(60, 60),
    ),
    "part of the head rotated": (layer, place(60, 60, rotated=8)),
    "a window that hides nothing": (lambda: layer(replace(SHAPE, window=70)), place(33, 70)),
    "no adapter": (lambda: layer(ranks=(0,) * 7), place(77, 20)),
    "some adapters": (lambda: layer(ranks=(8, 0, 8, 0, 4, 16, 0)), place(77, 20)),
    "others": (lambda: layer(ranks=(0, 8, 0, 5, 0, 3, 8)), place(77, 20)),
    "ranks that differ": (lambda: layer(ranks=(1, 2, 3, 4, 5, 6, 7)), place(60, 60)),
    "a start that is shared": (layer, place(33, 70, 5, 20, shared=17)),
    "SmolLM2": (lambda: layer(SMOLLM2, 576, 1536), place(128, 100, rotated=64)),
    "odd sizes": (lambda: layer(ODD, 50, 77, (8, 8, 8, 8, 3, 8, 9)), place(61, 60, rotated=18)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_as_a_whole_is_what_its_parts_are(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    make, where = CASES[case]
    one, tokens = make(), where.segments.length
    x = torch.randn(tokens, one.q.weight.shape[1])
    assert whole(x, one, where)
    mine = run(x, one, where)
    others = by_parts(monkeypatch, lambda: run(x, one, where))
    assert len(mine) == 2 + 2 * sum(linear.factors is not None for linear in one.linears)
    for a, b in zip(mine, others, strict=True):
        torch.testing.assert_close(a, b, atol=3e-6 * float(b.abs().max()), rtol=0)
    assert all(map(torch.equal, run(x, one, where, checkpoint=True), mine)), "computed again"
    with torch.no_grad():
        assert torch.equal(block(x, one, where), mine[0])


LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
NORMS = ("before_attention", "before_mlp", "q_norm", "k_norm")


def cast(one: Layer, dtype: torch.dtype) -> Layer:
    """With its frozen weights in a dtype; its factors stay as they are."""
    changed: dict[str, Linear | Norm] = {}
    for name in LINEARS:
        given: Linear = getattr(one, name)
        bias = None if given.bias is None else given.bias.to(dtype)
        changed[name] = replace(given, weight=given.weight.to(dtype), bias=bias)
    for name in NORMS:
        if (norm := getattr(one, name)) is not None:
            changed[name] = replace(norm, weight=norm.weight.to(dtype))
    return replace(one, **changed)


@pytest.mark.parametrize("case", CASES)
def test_in_bfloat16_a_layer_is_no_further_from_float32_than_its_parts_by_torch(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """In sum over all tensors: a single one may be the luckier in either way."""
    make, where = CASES[case]
    one = cast(make(), torch.bfloat16)
    x = torch.randn(where.segments.length, one.q.weight.shape[1]).bfloat16()
    assert whole(x, one, where)
    mine = run(x, one, where)
    assert mine[0].dtype == mine[1].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in mine[2:])
    monkeypatch.setattr(gemm, "serves_here", lambda dtype: False)
    others = run(x, one, where)
    exact = run(x.float(), cast(one, torch.float32), where)

    def distances(found: list[Tensor]) -> list[float]:
        return [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]

    assert max(distances(mine)) < 0.03
    assert sum(distances(mine)) <= 1.05 * sum(distances(others))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_number_depends_on_the_threads(dtype: torch.dtype) -> None:
    one, where = layer(head_norms=True), place(33, 70, 25, shared=10)
    x = torch.randn(128, HIDDEN).to(dtype)
    one = cast(one, dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert whole(x, one, where)
            results.append(run(x, one, where))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_without_a_gradient_of_the_input_the_factors_have_theirs() -> None:
    """As in the lowest layer that is adapted."""
    one, where, x = layer(), place(50, 40), torch.randn(90, HIDDEN)
    _, _, *expected = run(x, one, where)
    for factor in (t for linear in one.linears for t in linear.factors()):
        factor.grad = None
    y = block(x, one, where)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
    found = [t.grad for linear in one.linears for t in linear.factors()]
    assert all(map(torch.equal, found, expected))


def test_a_nan_comes_through_in_its_example_alone() -> None:
    one, where, x = layer(), place(50, 40), torch.randn(90, HIDDEN)
    x[60] = torch.nan
    y, dx, *factors = run(x, one, where)
    for found in (y, dx):
        assert not found[:50].isnan().any() and found[60:].isnan().any()
    assert all(gradient.isnan().any() for gradient in factors)


@pytest.mark.parametrize(
    "other",
    [
        lambda: layer(replace(SHAPE, residual=0.5)),
        lambda: layer(replace(SHAPE, window=20)),
        lambda: layer(replace(SHAPE, softcap=30.0)),
        lambda: replace(layer(), after_mlp=Norm(torch.ones(HIDDEN), 1e-5)),
        lambda: layer(ranks=(24, 24, 24, 8, 8, 8, 8)),
        lambda: layer(dropout=0.1),
    ],
    ids=["residual", "window", "softcap", "norm behind", "72 ranks", "dropout"],
)
def test_what_layer_c_does_not_know_is_computed_by_parts(
    monkeypatch: pytest.MonkeyPatch, other: Callable[[], Layer]
) -> None:
    one, where, x = other(), place(50, 40), torch.randn(90, HIDDEN)
    mine = run(x, one, where)
    others = by_parts(monkeypatch, lambda: run(x, one, where))
    assert all(map(torch.equal, mine, others))


def test_other_dtypes_are_computed_by_parts() -> None:
    one, where = layer(ranks=(0,) * 7), place(50, 40)
    assert whole(torch.randn(90, HIDDEN), one, where)
    assert not whole(torch.randn(90, HIDDEN, dtype=torch.bfloat16), one, where), "mixed"
    assert whole(torch.randn(90, HIDDEN, dtype=torch.bfloat16), cast(one, torch.bfloat16), where)
    half = replace(one, up=replace(one.up, weight=one.up.weight.half()))
    assert not whole(torch.randn(90, HIDDEN), half, where)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["plain", "biases", "some adapters", "SmolLM2", "odd sizes"])
def test_a_layer_with_packed_weights_is_the_layer_with_their_numbers(
    monkeypatch: pytest.MonkeyPatch, case: str, kind: str, dtype: torch.dtype
) -> None:
    """Bit for bit, as a whole and by its parts."""
    make, where = CASES[case]
    dense = cast(make(), dtype)
    weights = {name: getattr(dense, name).weight for name in LINEARS}
    packed = {name: drawn(kind, *w.shape, dtype) for name, w in weights.items()}

    def with_weights(given: Callable[[str], Tensor | Packed]) -> Layer:
        new = {name: replace(getattr(dense, name), weight=given(name)) for name in LINEARS}
        return replace(dense, **new)

    one, other = (
        with_weights(lambda name: packed[name]),
        with_weights(lambda name: packed[name].dense()),
    )
    x = torch.randn(where.segments.length, one.q.weight.shape[1]).to(dtype)
    assert whole(x, one, where) and whole(x, other, where)
    assert all(map(torch.equal, run(x, one, where), run(x, other, where)))
    parts = [by_parts(monkeypatch, lambda: run(x, way, where)) for way in (one, other)]  # noqa: B023
    assert all(map(torch.equal, *parts))


def test_two_layers_in_one_graph_do_not_share_memory() -> None:
    one, where, x = layer(), place(50, 40), torch.randn(90, HIDDEN)
    expected = run(x, one, where)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [block(x, one, where) for x in inputs]
    for x, y in zip(inputs, outputs, strict=True):
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
        assert torch.equal(y, expected[0]) and torch.equal(x.grad, expected[1])


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_layer_uses_its_memory_again_whatever_is_left_in_it(
    monkeypatch: pytest.MonkeyPatch, checkpoint: bool
) -> None:
    kept = held_memory.OfThread()
    monkeypatch.setattr(held_memory, "kept", kept)
    one, where, x = layer(), place(50, 40), torch.randn(90, HIDDEN)
    expected = run(x, one, where, checkpoint=checkpoint)
    with torch.no_grad():
        block(x, one, where)
    (left,) = kept.idle
    for used in (left, *kept.scratch.values()):
        used.fill_(torch.nan)
    again = run(x, one, where, checkpoint=checkpoint)
    assert all(map(torch.equal, again, expected))
    assert [block.data_ptr() for block in kept.idle] == [left.data_ptr()]


@pytest.mark.parametrize("tokens", [500, 9216, 20_000])
def test_a_call_has_memory_for_every_thin_product(tokens: int) -> None:
    """Which of them wants most is not which is largest: sums are kept for fewer pieces then."""
    library, rank, hidden, inner = native.compiled(torch.float32), 32, 1024, 4096
    assert library is not None
    shape = replace(SHAPE, head_dim=64)
    one = layer(shape, hidden, inner, (8, 8, 8, rank, rank, rank, rank))
    factors = [linear.factors() for linear in one.linears if linear.factors]
    made = one_call.Whole.of(torch.empty(tokens, hidden), one, place(tokens, rotated=64), factors)
    assert made is not None
    q, kv = 256, 128
    thins = max(
        library.thin_workspace(tokens, r, d)
        for r, d in (
            *((24, hidden), (8, q), (8, kv), (rank, q), (rank, hidden)),  # q, k, v; o
            *((2 * rank, hidden), (rank, inner)),  # gate, up; down
        )
    )
    a_token = 2 * rank + q + 2 * kv + max(2 * hidden, inner, q)
    needed = tokens * a_token + rank * inner + thins
    described = ctypes.addressof(made.given), ctypes.addressof(made.where)
    assert needed <= library.layer_space(*described) < needed + 256
