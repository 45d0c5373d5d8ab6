"""How examples are put together for attention; what comes of it is tested in test_autograd.py."""

import torch
from torch import Tensor

from loractl.ops.attention.packing import Pack, pack_of
from loractl.ops.chunks import SCORES, examples_together, query_rows
from loractl.ops.segments import Segments, segments_of


def segments(*lengths: int, shared: int = 0) -> Segments:
    first, *others = lengths
    positions = [torch.arange(first), *(torch.arange(shared, n) for n in others)]
    return segments_of(torch.cat(positions)[None], shared)


def drawn(one: Segments, heads: int) -> Tensor:
    generator = torch.Generator().manual_seed(heads)
    return torch.randn(one.length, heads, 4, generator=generator)


def pack(one: Segments, heads: int = 6, kv_heads: int = 2) -> tuple[Pack, Tensor, Tensor]:
    q, k = drawn(one, heads), drawn(one, kv_heads)
    return pack_of(q, k, one), q, k


def test_examples_of_like_length_stand_together_and_others_apart() -> None:
    found, _, _ = pack(segments(20, 90, 100, 76, 33))
    assert [(len(g.spans), g.length) for g in found.groups] == [(3, 100), (2, 33)]


def test_a_group_is_no_larger_than_its_scores_may_be() -> None:
    lengths = [300] * 8
    found, _, _ = pack(segments(*lengths), heads=24, kv_heads=8)
    scores = 24 * query_rows(4) * 300 * 4
    sizes = [len(group.spans) for group in found.groups]
    assert sizes == [2, 2, 2, 2] and examples_together(scores, 8) == 2
    assert 2 * scores <= SCORES < 3 * scores
    assert examples_together(SCORES + 1, 8) == 1  # a long one alone


def test_what_is_put_into_slots_comes_back_and_is_made_once_for_all_layers() -> None:
    one = segments(5, 9, 7)
    found, q, k = pack(one)
    assert torch.equal(found.of_queries(found.queries(q)), q)
    assert torch.equal(found.of_keys(found.keys(k)), k)
    assert pack_of(q, k, one) is found and pack_of(k, k, one) is not found
    [view] = found.query_views(found.queries(q))
    assert view.shape == (3 * 2, 9, 3, 4)  # examples and kv heads, tokens, heads of a kv head, d
    assert torch.equal(view.view(3, 2, 9, 3, 4)[0, 1, 8], q[13, 3:])  # the longest is the first


def test_padding_has_no_gradient_and_a_shared_start_has_the_sum_of_its_copies() -> None:
    one = segments(9, 12, 10, shared=4)
    found, q, k = pack(one)
    slots = found.gradients(torch.ones_like(q))
    assert slots.shape[0] > q.shape[0] * q.shape[1] and slots.sum() == q.numel()
    seen = found.of_keys(torch.ones_like(found.keys(k)))
    assert torch.equal(seen[:, 0, 0], torch.tensor([3.0] * 4 + [1.0] * (one.length - 4)))
