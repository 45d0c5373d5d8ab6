"""Attention by segment against its naive twin: one softmax over a full mask, in float64."""

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.ops.attention import blocks, tasks
from loractl.ops.attention.autograd import attention_backward, attention_forward, segment_attention
from loractl.ops.segments import Segments, segments_of
from tests.ops.conftest import let_serve, ways

EXAMPLES: dict[str, list[list[int]]] = {  # lengths of the examples of each row
    "one short": [[5]],
    "single tokens": [[1, 1, 3], [4, 1]],
    "a row of several blocks": [[150]],
    "two rows, mixed": [[64, 65, 1, 20], [130, 20]],
}


@pytest.fixture(params=ways("attention.c"))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whatever this machine's processor is; a window or a cap goes torch's way in both."""
    let_serve(request.param == "attention.c", monkeypatch)
    monkeypatch.setattr(tasks, "BUSY", 0.0)  # also where tasks are few
    return str(request.param)


def positions(lengths: list[list[int]]) -> Tensor:
    return torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])


def naive(q: Tensor, k: Tensor, v: Tensor, segments: Segments, options: dict[str, Any]) -> Tensor:
    """Every score of every pair of tokens, in the dtype of q."""
    window, softcap = options.get("window"), options.get("softcap")
    number = torch.zeros(len(q), dtype=torch.int64)
    for i, (start, stop) in enumerate(segments.spans):
        number[start:stop] = i
    back = torch.arange(len(q))[:, None] - torch.arange(len(q))
    seen = (number[:, None] == number) & (back >= 0) & (back < (window or len(q)))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * options["scale"]
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    p = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", p, v)


def drawn(
    n: int, heads: int, kv_heads: int, d: int, dv: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the gradient of the output, float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, heads, d), (n, kv_heads, d), (n, kv_heads, dv or d), (n, heads, dv or d)
    q, k, v, dout = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return q * 2, k, v, dout


def with_gradients(
    compute: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, dout: Tensor
) -> list[Tensor]:
    """The output, and the gradients of q, k and v."""
    inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = compute(*inputs)
    out.backward(dout)  # type: ignore[no-untyped-call]
    return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]


def compare(
    lengths: list[list[int]], heads: tuple[int, int], d: int, dv: int | None = None, **options: Any
) -> None:
    segments = segments_of(positions(lengths))
    q, k, v, dout = drawn(segments.rows * segments.length, *heads, d, dv)
    options = {"scale": d**-0.5, **options}
    expected = with_gradients(lambda *x: naive(*x, segments, options), q, k, v, dout)
    found = with_gradients(
        lambda *x: segment_attention(*x, segments, **options),
        *(x.float() for x in (q, k, v, dout)),
    )
    for value, exact, tolerance in zip(found, expected, (1e-6, 1e-5, 1e-5, 1e-5), strict=True):
        scale = float(exact.abs().max())
        torch.testing.assert_close(value.double(), exact, atol=tolerance * scale, rtol=0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("lengths", EXAMPLES.values(), ids=EXAMPLES)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 7}, {"softcap": 3.0}], ids=str)
def test_it_is_the_softmax_over_the_full_mask(
    lengths: list[list[int]], heads: tuple[int, int], options: dict[str, Any]
) -> None:
    compare(lengths, heads, d=8, **options)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", range(8))
def test_random_layouts_and_forms_agree(seed: int) -> None:
    draw = random.Random(seed)
    length = draw.choice([30, 140, 200])
    lengths = []
    for _ in range(draw.randint(1, 3)):
        cuts = sorted(draw.sample(range(1, length), draw.randint(0, 5)))
        lengths.append([b - a for a, b in zip([0, *cuts], [*cuts, length], strict=True)])
    kv_heads = draw.randint(1, 3)
    compare(
        lengths,
        (kv_heads * draw.randint(1, 3), kv_heads),
        d=draw.choice([4, 5, 16]),
        dv=draw.choice([None, 6]),
        scale=draw.choice([0.1, 0.5]),
        window=draw.choice([None, 1, 2, 63, 64, 65, 128, 500]),
        softcap=draw.choice([None, 2.0]),
    )


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 70}, {"window": 7, "softcap": 3.0}], ids=str)
def test_a_shared_start_is_as_good_as_copies_of_it(
    heads: tuple[int, int], options: dict[str, Any]
) -> None:
    shared, lengths = 67, [70, 68, 200]
    packed = positions([lengths])
    q, k, v, dout = (x.float() for x in drawn(sum(lengths), *heads, 8))
    copy = (packed[0] < shared).nonzero().flatten()[shared:]  # the shared tokens of the others
    for x in (q, k, v):
        x[copy] = x[:shared].repeat(len(lengths) - 1, 1, 1)
    dout[copy] = 0  # nothing that follows reads them
    options = {"scale": 0.35, **options}
    whole = segments_of(packed)
    expected = with_gradients(lambda *x: segment_attention(*x, whole, **options), q, k, v, dout)
    kept = torch.ones(len(q), dtype=torch.bool)
    kept[copy] = False
    once = segments_of(packed[:, kept], shared)
    assert once.spans == ((0, 70), (70, 71), (71, 204)) and once.longest == 200
    found = with_gradients(
        lambda *x: segment_attention(*x, once, **options), *(x[kept] for x in (q, k, v, dout))
    )
    for value, exact in zip(found, expected, strict=True):
        if value is not found[0]:
            exact[:shared] += exact[copy].view(-1, shared, *exact.shape[1:]).sum(0)
        torch.testing.assert_close(value, exact[kept], atol=2e-5, rtol=1e-5)


@pytest.mark.usefixtures("way")
def test_views_of_one_projection_give_the_same_as_copies_and_results_are_contiguous() -> None:
    segments = segments_of(positions([[9, 70], [79]]))
    q, k, v, dout = (x.float() for x in drawn(158, 6, 2, 8))
    fused = torch.cat([q, k, v], dim=1).transpose(0, 1).contiguous().transpose(0, 1)
    views = fused.split([6, 2, 2], dim=1)
    assert not any(x.is_contiguous() for x in views)
    out, saved = attention_forward(*views, segments, scale=0.3)
    grads = attention_backward(dout, *views, out, saved, segments, scale=0.3)
    expected = with_gradients(lambda *x: segment_attention(*x, segments, scale=0.3), q, k, v, dout)
    for found, value in zip((out, *grads), expected, strict=True):
        assert found.is_contiguous()
        torch.testing.assert_close(found, value, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("way")
def test_what_is_saved_besides_the_arguments_is_small() -> None:
    segments = segments_of(positions([[40]]))
    q, k, v, _ = (x.float() for x in drawn(40, 4, 2, 8))
    _, saved = attention_forward(q, k, v, segments, scale=1.0)
    assert saved.numel() <= 40 * 4


def test_bfloat16_is_near_float32_and_its_softmax_sums_to_one() -> None:
    segments = segments_of(positions([[3, 9]]))
    q, k, v, dout = drawn(12, 2, 1, 8)
    exact = with_gradients(lambda *x: naive(*x, segments, {"scale": 0.35}), q, k, v, dout)
    found = with_gradients(
        lambda *x: segment_attention(*x, segments, scale=0.35),
        *(x.bfloat16() for x in (q, k, v, dout)),
    )
    for value, expected in zip(found, exact, strict=True):
        assert value.dtype == torch.bfloat16
        error = (value.double() - expected).abs().max() / expected.abs().max()
        assert error < 0.03
    ones = segment_attention(q.bfloat16(), k.bfloat16(), torch.ones_like(v).bfloat16(),
                             segments, scale=0.35)  # fmt: skip
    assert (ones.float() - 1).abs().max() < 0.01


def test_under_autocast_products_are_in_its_dtype() -> None:
    segments = segments_of(positions([[6]]))
    q, k, v, dout = (x.float() for x in drawn(6, 2, 1, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(
            lambda *x: segment_attention(*x, segments, scale=0.5), q, k, v, dout.bfloat16()
        )
    assert found[0].dtype == torch.bfloat16 and found[1].dtype == torch.float32
    exact = with_gradients(lambda *x: naive(*x, segments, {"scale": 0.5}), q, k, v, dout)
    for value, expected in zip(found, exact, strict=True):
        assert 0 < (value.float() - expected).abs().max() < 0.03 * expected.abs().max()


def test_positions_tell_where_segments_begin() -> None:
    packed = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    segments = segments_of(packed)
    assert segments.spans == ((0, 3), (3, 5), (5, 6), (6, 12))
    assert (segments.rows, segments.length, segments.longest) == (2, 6, 6)
    assert segments.offsets(torch.device("cpu")).tolist() == [0, 3, 5, 6, 12]


def test_the_mask_of_segments_is_what_each_token_sees() -> None:
    mask = segments_of(torch.tensor([[0, 1, 2, 0], [0, 1, 2, 3]])).mask(2, torch.device("cpu"))
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, True, True, False],
        [False, False, False, True],
    ]
    assert mask[1, 0, 3].tolist() == [False, False, True, True]


def test_blocks_outside_the_window_are_skipped() -> None:
    q = torch.empty(1, 1000, 1, 4)
    seen = [keys.stop - keys.start for _, _, keys in blocks.query_blocks(q, q, 10)]
    assert max(seen) <= blocks.block_of(q.dtype) + 9
    assert [stop for _, stop, _ in blocks.query_blocks(q, q, 10)][-1] == 1000


PEAK = """
import resource, sys, torch
from loractl.ops.attention.autograd import segment_attention
from loractl.ops.segments import segments_of
n = int(sys.argv[1])
q, k, v = (torch.randn(n, h, 8, requires_grad=True) for h in (2, 1, 1))
segments = segments_of(torch.arange(n)[None])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
segment_attention(q, k, v, segments, scale=0.3).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_grows_linearly_with_the_length_of_one_example() -> None:
    """A full mask of scores of 8,192 tokens and two heads is 537 MB, of 2,048 tokens 34 MB."""
    kib = [
        int(subprocess.run([sys.executable, "-c", PEAK, str(n)], capture_output=True, check=True,
                           text=True).stdout)
        for n in (2048, 8192)
    ]  # fmt: skip
    assert kib[1] < 64 * 1024, kib
