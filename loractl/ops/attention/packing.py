"""Group examples of similar length, so that one call multiplies the blocks of several.

The queries, keys and values of a batch are copied once into slots, one group of examples after the
other, each padded to the longest of its group. Padding never precedes a real token, so no real
query sees it, and the results of padding are discarded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loractl.ops.chunks import examples_together, query_rows
from loractl.ops.segments import Segments


@dataclass(frozen=True)
class Group:
    """Examples whose slots have equal length."""

    spans: tuple[tuple[int, int], ...]
    length: int  # of the longest example
    before: int  # shared tokens that each example sees before its own (ops/segments.py)


@dataclass(frozen=True)
class Pack:
    """Which row of q (tokens * heads, d) and of k (tokens * kv_heads, d) is in which slot."""

    kv_heads: int
    queries_a_head: int  # query heads that read one kv head
    groups: tuple[Group, ...]
    rows_of_q: Tensor  # (query slots,)
    rows_of_k: Tensor  # (key slots,)
    slots_of_q: Tensor  # (tokens * heads,)
    slots_of_k: Tensor  # (tokens * kv_heads,)
    padding: Tensor  # the query slots without a token of their own

    def queries(self, x: Tensor) -> Tensor:
        """x (tokens, heads, d) in slots, (query slots, d)."""
        return x.flatten(0, 1).index_select(0, self.rows_of_q)

    def keys(self, x: Tensor) -> Tensor:
        """x (tokens, kv_heads, d) in slots, (key slots, d)."""
        return x.flatten(0, 1).index_select(0, self.rows_of_k)

    def gradients(self, x: Tensor) -> Tensor:
        """Like `queries`, with zeros for padding, so that it adds nothing to any gradient."""
        return self.queries(x).index_fill_(0, self.padding, 0)

    def query_views(self, slots: Tensor) -> list[Tensor]:
        """Each group's part, (examples * kv_heads, length, queries_a_head, d)."""
        shapes = [(one.length, self.queries_a_head) for one in self.groups]
        return self._group_views(slots, shapes)

    def key_views(self, slots: Tensor) -> list[Tensor]:
        """Each group's part, (examples * kv_heads, before + length, d)."""
        return self._group_views(slots, [(one.before + one.length,) for one in self.groups])

    def _group_views(self, slots: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        leading = [len(one.spans) * self.kv_heads for one in self.groups]
        sizes = [n * torch.Size(shape).numel() for n, shape in zip(leading, shapes, strict=True)]
        return [
            part.view(n, *shape, slots.shape[1])
            for part, n, shape in zip(torch.split(slots, sizes), leading, shapes, strict=True)
        ]

    def of_queries(self, slots: Tensor) -> Tensor:
        """The reverse: (query slots, d) to (tokens, heads, d)."""
        heads = self.kv_heads * self.queries_a_head
        return slots.index_select(0, self.slots_of_q).view(-1, heads, slots.shape[1])

    def of_keys(self, slots: Tensor) -> Tensor:
        """(key slots, d) to (tokens, kv_heads, d); gradients of shared tokens are summed."""
        found = slots.index_select(0, self.slots_of_k).view(-1, self.kv_heads, slots.shape[1])
        for group, part in zip(self.groups, self.key_views(slots), strict=True):
            if group.before:
                every = part.view(-1, self.kv_heads, *part.shape[1:])  # one example each
                found[: group.before] += every[:, :, : group.before].sum(0).transpose(0, 1)
        return found


def pack_of(q: Tensor, k: Tensor, segments: Segments) -> Pack:
    """The packing for q (tokens, heads, d) and k (tokens, kv_heads, d), cached in the segments."""
    key = (q.shape[1], k.shape[1], q.dtype.itemsize, q.device)
    if key not in segments.kept:
        segments.kept[key] = _make_pack(segments, *key)
    found: Pack = segments.kept[key]
    return found


def _make_pack(
    segments: Segments, heads: int, kv_heads: int, width: int, device: torch.device
) -> Pack:
    """`width` is the bytes per score."""
    group = heads // kv_heads
    groups = _group_spans(segments, heads, width)
    tokens = segments.rows * segments.length
    slots_of_q = torch.empty(tokens, heads, dtype=torch.int64)
    slots_of_k = torch.empty(tokens, kv_heads, dtype=torch.int64)
    rows_of_q, rows_of_k, padding = [], [], [torch.empty(0, dtype=torch.int64)]
    query_slots = key_slots = 0
    head = torch.arange(heads).view(kv_heads, 1, group)
    kv_head = torch.arange(kv_heads).view(kv_heads, 1)
    for one in groups:
        for start, stop in one.spans:
            own = stop - start
            token = torch.arange(start, start + one.length).clamp_(max=stop - 1)
            seen = torch.cat([torch.arange(one.before), token])
            q = token.view(1, -1, 1) * heads + head  # (kv_heads, length, group)
            k = seen * kv_heads + kv_head  # (kv_heads, before + length)
            q_slot = query_slots + torch.arange(q.numel()).view(q.shape)
            k_slot = key_slots + torch.arange(k.numel()).view(k.shape)
            slots_of_q[start:stop] = q_slot[:, :own].transpose(0, 1).reshape(own, heads)
            slots_of_k[start:stop] = k_slot[:, one.before : one.before + own].T
            padding.append(q_slot[:, own:].flatten())
            rows_of_q.append(q.flatten())
            rows_of_k.append(k.flatten())
            query_slots, key_slots = query_slots + q.numel(), key_slots + k.numel()

    def kept(indices: Tensor) -> Tensor:
        return indices.flatten().to(device, torch.int32)

    return Pack(
        kv_heads, group, groups,
        rows_of_q=kept(torch.cat(rows_of_q)), rows_of_k=kept(torch.cat(rows_of_k)),
        slots_of_q=kept(slots_of_q), slots_of_k=kept(slots_of_k),
        padding=torch.cat(padding).to(device),
    )  # fmt: skip


def _group_spans(segments: Segments, heads: int, width: int) -> tuple[Group, ...]:
    """Longest first; a group grows as long as its scores stay small and its padding is at most a
    quarter or a few tokens."""
    by_length = sorted(
        segments.spans, key=lambda span: (-segments.before(span[0]), span[0] - span[1])
    )
    found: list[list[tuple[int, int]]] = []
    for start, stop in by_length:
        if found:
            (first, last), before = found[-1][0], segments.before(found[-1][0][0])
            longest = last - first
            scores = heads * min(longest, query_rows(width)) * (before + longest) * width
            near = longest - (stop - start) <= max(16, longest // 4)
            room = examples_together(scores, len(found[-1]) + 1) > len(found[-1])
            if near and room and before == segments.before(start):
                found[-1].append((start, stop))
                continue
        found.append([(start, stop)])
    return tuple(
        Group(tuple(one), one[0][1] - one[0][0], segments.before(one[0][0])) for one in found
    )
