"""Where the examples of a batch lie, as spans of its flat tokens: read once for all layers."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """The examples of a batch. Its flat token `row * length + column` lies in exactly one span.

    Padding lies in a span too: in one of its own, or at the end of a row's only example.

    The first `shared` tokens of all may be those of every example (models/fast/shared_start.py):
    each span but the first then sees them before its own, which stand at the positions behind them.
    """

    rows: int
    length: int
    spans: tuple[tuple[int, int], ...]  # (start, stop) in flat tokens, in order
    shared: int = 0
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What is computed of it once for all layers, by whoever needs it."""

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest example: its span, and the shared ones that it sees before it."""
        return max(stop - start + self.before(start) for start, stop in self.spans)

    def before(self, start: int) -> int:
        """How many shared tokens the span that begins at `start` sees before its own."""
        return self.shared if start else 0

    def offsets(self, device: torch.device) -> Tensor:
        """Where each span begins and the last one ends, (spans + 1,) int32, kept on its device."""
        if device not in self.kept:
            ends = [0, *(stop for _, stop in self.spans)]
            self.kept[device] = torch.tensor(ends, dtype=torch.int32, device=device)
        found: Tensor = self.kept[device]
        return found

    def mask(self, window: int | None, device: torch.device) -> Tensor:
        """What each token sees, (rows, 1, length, length) of bool, for kernels that need it."""
        assert not self.shared, "a start that is shared lies elsewhere"
        sizes = torch.tensor([stop - start for start, stop in self.spans], device=device)
        number = torch.arange(len(self.spans), device=device).repeat_interleave(sizes)
        number = number.view(self.rows, 1, self.length)  # which span a token lies in
        place = torch.arange(self.length, device=device)
        back = place[:, None] - place  # (length, length), how far back a key stands
        seen = (back >= 0) & (back < (window or self.length))
        return ((number[:, :, :, None] == number[:, :, None]) & seen).contiguous()


def segments_of(position_ids: Tensor, shared: int = 0) -> Segments:
    """A span begins wherever a position does not follow the one before, and with each row.

    `position_ids` is (rows, length), or (1, length) where every row is the same; `shared` tokens
    begin every example and lie in the first one alone. Waits for the device once.
    """
    rows, length = position_ids.shape
    starts = torch.ones(rows, length, dtype=torch.bool, device=position_ids.device)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    found = [*starts.flatten().nonzero().flatten().tolist(), rows * length]
    assert rows == 1 or not shared, "a shared start is that of one row"
    return Segments(rows, length, tuple(zip(found[:-1], found[1:], strict=True)), shared)
