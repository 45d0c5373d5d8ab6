"""Attention in C by tasks; that it is the softmax over the full mask is tested in
test_autograd.py, beside torch's way."""

import pytest
import torch

from loractl.ops.attention import tasks
from loractl.ops.attention.autograd import attention_backward, attention_forward
from loractl.ops.attention.blocks import Form
from loractl.ops.segments import Segments, segments_of
from tests.ops.conftest import let_serve

FORM = Form(scale=0.125)


pytestmark = pytest.mark.usefixtures("by_c")


def segments(*lengths: int) -> Segments:
    return segments_of(torch.cat([torch.arange(n) for n in lengths])[None])


@pytest.mark.parametrize(
    ("d", "dv"), [(64, 64), (64, 40), (96, 80), (128, 128), (20, 33), (1, 1), (256, 16)]
)
def test_heads_of_any_width_give_what_torch_gives(
    monkeypatch: pytest.MonkeyPatch, d: int, dv: int
) -> None:
    """Panels are 24 numbers wide, and heads are not."""
    one = segments(33, 150, 1, 31, 32, 97)
    q, k = torch.randn(one.length, 4, d), torch.randn(one.length, 2, d)
    v, dout = torch.randn(one.length, 2, dv), torch.randn(one.length, 4, dv)
    found = []
    for by_c in (True, False):
        let_serve(by_c, monkeypatch)
        out, saved = attention_forward(q, k, v, one, scale=d**-0.5)
        assert bool(saved.numel()) is by_c
        found.append((out, *attention_backward(dout, q, k, v, out, saved, one, scale=d**-0.5)))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=3e-6 * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("d", [64, 33])
@pytest.mark.parametrize("shared", [0, 21])
@pytest.mark.parametrize("lengths", [(133, 80, 51, 32), (25, 1, 2, 3, 7)], ids=str)
def test_in_bfloat16_numbers_are_no_further_from_float64_than_torchs(
    monkeypatch: pytest.MonkeyPatch, d: int, shared: int, lengths: tuple[int, ...]
) -> None:
    """In sum over ten draws: in a few short examples a single one may be the luckier either way."""
    parts = [torch.arange(n) + (shared if i else 0) for i, n in enumerate(lengths)]
    one = segments_of(torch.cat(parts)[None], shared)
    shapes = [(one.length, heads, d) for heads in (6, 2, 2, 6)]
    mine, torchs = torch.zeros(4), torch.zeros(4)  # distances of out, dq, dk and dv

    def found(drawn: list[torch.Tensor], *, by_c: bool) -> list[torch.Tensor]:
        let_serve(by_c, monkeypatch)
        *given, dout = drawn
        out, saved = attention_forward(*given, one, scale=d**-0.5)
        assert bool(saved.numel()) is by_c
        gradients = attention_backward(dout, *given, out, saved, one, scale=d**-0.5)
        return [out.double(), *(x.double() for x in gradients)]

    for seed in range(10):
        torch.manual_seed(seed)
        q, k, v, dout = (torch.randn(*shape).bfloat16() for shape in shapes)
        exact = found([x.double() for x in (q, k, v, dout)], by_c=False)
        for distances, by_c in ((mine, True), (torchs, False)):
            pairs = zip(found([q, k, v, dout], by_c=by_c), exact, strict=True)
            distances += torch.tensor([float((x - true).norm()) for x, true in pairs])
    assert (mine <= torchs).all(), (mine, torchs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_number_depends_on_the_threads_or_on_the_other_examples(dtype: torch.dtype) -> None:
    lengths = (70, 20, 45, 61)
    one = segments(*lengths)
    q, k, v, dout = (torch.randn(one.length, heads, 64).to(dtype) for heads in (6, 2, 2, 6))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out, saved = tasks.forward(q, k, v, one, FORM)
            results.append((out, *tasks.backward(dout, q, k, v, out, saved, one, FORM)))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    for start, stop in one.spans:
        alone = segments(stop - start)
        parts = [x[start:stop] for x in (q, k, v)]
        out, saved = tasks.forward(*parts, alone, FORM)
        grads = tasks.backward(dout[start:stop], *parts, out, saved, alone, FORM)
        for a, b in zip(results[0], (out, *grads), strict=True):
            assert torch.equal(a[start:stop], b)


def test_what_is_saved_is_the_logsumexp() -> None:
    one = segments(5, 9)
    q, k, v = (torch.randn(14, 2, 8) for _ in range(3))
    _, saved = tasks.forward(q, k, v, one, FORM)
    scores = torch.einsum("qhd,khd->hqk", q, k)[:, 5:, 5:] * FORM.scale
    hidden = torch.ones(9, 9).triu(1).bool()
    expected = scores.masked_fill(hidden, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(saved[:, 5:], expected)


def test_it_serves_while_most_threads_have_a_task() -> None:
    def busy(kv_heads: int, threads: int, *lengths: int) -> float:
        return tasks.busy_share(segments(*lengths), kv_heads, threads)

    assert busy(3, 1, 500) == 1
    assert busy(3, 2, 500) == 0.75  # two tasks, then one
    assert busy(1, 2, 500) == 0.5
    assert busy(1, 2, 300, 300, 300, 300) == 1
    assert busy(3, 16, 500) == 3 / 16
    q = torch.randn(500, 1, 8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert not tasks.task_fits(q, q, q, segments(500), FORM)
        assert tasks.task_fits(q, q, q, segments(*[100] * 5), FORM)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("form", [Form(0.1, window=4), Form(0.1, softcap=3.0)])
def test_a_window_and_a_cap_go_torchs_way(form: Form) -> None:
    q = torch.randn(50, 2, 8)
    one = segments(20, 30)
    assert tasks.task_fits(q, q, q, one, FORM)
    assert not tasks.task_fits(q, q, q, one, form)
    assert not tasks.task_fits(*[q.half()] * 3, one, FORM)
    assert not tasks.task_fits(q, q.bfloat16(), q, one, FORM)
    assert not tasks.task_fits(q.transpose(1, 2).contiguous().transpose(1, 2), q, q, one, FORM)
