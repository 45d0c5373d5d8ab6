"""Where the examples of a batch are, as spans of its flat tokens: found once for all layers."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """The examples of a batch. Each flat token `row * length + column` is in exactly one span.

    Padding is in a span too: in one of its own, or at the end of a row's only example.

    The first `shared` tokens may belong to every example (models/fast/shared_start.py): each span
    but the first then sees them before its own tokens, whose positions follow theirs.
    """

    rows: int
    length: int
    spans: tuple[tuple[int, int], ...]  # (start, stop) in flat tokens, in order
    shared: int = 0
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """A cache of values computed once for all layers, by any code that needs them."""

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest example: its span and the shared tokens it sees before it."""
        return max(stop - start + self.before(start) for start, stop in self.spans)

    def before(self, start: int) -> int:
        """How many shared tokens the span that begins at `start` sees before its own."""
        return self.shared if start else 0

    def offsets(self, device: torch.device) -> Tensor:
        """The start of each span and the end of the last, (spans + 1,) int32, cached per device."""
        if device not in self.kept:
            ends = [0, *(stop for _, stop in self.spans)]
            self.kept[device] = torch.tensor(ends, dtype=torch.int32, device=device)
        found: Tensor = self.kept[device]
        return found

    def mask(self, window: int | None, device: torch.device) -> Tensor:
        """What each token sees, (rows, 1, length, length) of bool, for kernels that need it."""
        assert not self.shared, "no mask can be built with a shared start"
        sizes = torch.tensor([stop - start for start, stop in self.spans], device=device)
        number = torch.arange(len(self.spans), device=device).repeat_interleave(sizes)
        number = number.view(self.rows, 1, self.length)  # which span a token is in
        place = torch.arange(self.length, device=device)
        back = place[:, None] - place  # (length, length), how far back a key is
        seen = (back >= 0) & (back < (window or self.length))
        return ((number[:, :, :, None] == number[:, :, None]) & seen).contiguous()


def segments_of(position_ids: Tensor, shared: int = 0) -> Segments:
    """A span begins with each row and wherever a position is not one more than the previous one.

    `position_ids` is (rows, length), or (1, length) if every row is the same; `shared` tokens begin
    every example and are stored only in the first. Waits for a device that the positions are on.
    """
    rows, length = position_ids.shape
    starts = torch.ones(rows, length, dtype=torch.bool, device=position_ids.device)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    found = [*starts.flatten().nonzero().flatten().tolist(), rows * length]
    assert rows == 1 or not shared, "a shared start needs a single row"
    return Segments(rows, length, tuple(zip(found[:-1], found[1:], strict=True)), shared)
