"""Examples -> rows of at most max_length tokens. Pure: lengths in, indices out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import numpy.typing as npt

WINDOW = 2048
"""Examples packed together: enough to fill rows to about 99%, few enough to start quickly."""

SLACKS = (1, 1 / 7, 1 / 8, 1 / 16, 1 / 128)
"""Shares of a row that may stay empty; 1 is plain first-fit decreasing."""

Indices = npt.NDArray[np.int32]
"""Indices and lengths of examples: 4 bytes each, since there may be millions."""
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows(Sequence[list[int]]):
    """Rows of example indices, held as arrays: millions of examples cost 4 bytes each."""

    indices: Indices  # of all rows, one after another
    starts: Indices  # where each row begins, and the end of the last
    order: Indices | None = None  # in which the rows are taken; None: as stored

    @staticmethod
    def of(rows: Sequence[Sequence[int]]) -> "Rows":
        """The same rows as arrays."""
        sizes = [len(row) for row in rows]
        flat = np.fromiter((index for row in rows for index in row), np.int32, sum(sizes))
        return Rows(flat, np.cumsum([0, *sizes], dtype=np.int32))

    @staticmethod
    def singles(order: Indices) -> "Rows":
        """One row per example."""
        return Rows(order, np.arange(len(order) + 1, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, number: int) -> list[int]: ...
    @overload
    def __getitem__(self, number: slice) -> list[list[int]]: ...
    def __getitem__(self, number: int | slice) -> list[int] | list[list[int]]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        if self.order is not None:
            number = int(self.order[number])
        row: list[int] = self.indices[self.starts[number] : self.starts[number + 1]].tolist()
        return row

    def reordered(self, order: Indices) -> "Rows":
        """The rows in another order."""
        assert self.order is None, "these rows are already reordered"
        return replace(self, order=order)


def pack(lengths: Sequence[int] | Indices, max_length: int, *, window: int = WINDOW) -> Rows:
    """Put example indices into rows, the longest first, within each window of `window` examples.

    Every index appears once; no row exceeds max_length tokens. Ties keep the given order, so the
    result is a function of the arguments alone.
    """
    sizes = np.asarray(lengths, dtype=np.int32)
    if not len(sizes):
        return Rows.of([])
    assert sizes.max() <= max_length, f"an example has {sizes.max()} tokens, over {max_length}"
    slack = _best_slack(sizes[:window], max_length)
    indices, counts = np.empty(len(sizes), dtype=np.int32), []
    for start in range(0, len(sizes), window):
        taken, of_rows = _fill_rows(sizes[start : start + window], max_length, slack)
        indices[start : start + len(taken)] = start + taken
        counts.append(of_rows)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return Rows(indices, starts.astype(np.int32))


def _best_slack(sizes: Indices, max_length: int) -> int:
    """The slack that gives the fewest rows: tried on one window, used for all.

    On 7,473 GSM8K examples first-fit decreasing alone fills rows of 512, 1,024 and 2,048 tokens to
    96.5, 97.6 and 98.6%; with the best slack they are filled to 98.5, 99.0 and 99.5%.
    """
    slacks = [int(share * max_length) for share in SLACKS]
    return min(slacks, key=lambda slack: len(_fill_rows(sizes, max_length, slack)[1]))


def _fill_rows(sizes: Indices, max_length: int, slack: int) -> tuple[Indices, Indices]:
    """Indices row by row, and how many each row has: first-fit decreasing with lookahead.

    The longest example left begins a row. Next comes the longest one that, alone or with one more,
    can leave at most `slack` tokens of the row empty, or else the longest that fits.
    """
    left: dict[int, list[int]] = {}
    for index in range(len(sizes) - 1, -1, -1):
        left.setdefault(int(sizes[index]), []).append(index)
    count = np.bincount(sizes, minlength=max_length + 1)
    # For each number of tokens: the longest example left that is no longer, or 0.
    longest = np.maximum.accumulate(np.where(count > 0, np.arange(max_length + 1), 0))
    taken: list[int] = []
    counts: list[int] = []
    while len(taken) < len(sizes):
        space, before = max_length, len(taken)
        size = int(longest[space])
        while size:
            taken.append(left[size].pop())
            space -= size
            count[size] -= 1
            if not count[size]:
                above = longest[size:]
                above[above == size] = longest[size - 1]
            size = _next_size(count, longest, space, slack)
        counts.append(len(taken) - before)
    return np.array(taken, dtype=np.int32), np.array(counts, dtype=np.int32)


def _next_size(count: Counts, longest: Counts, space: int, slack: int) -> int:
    """The length to take next, or 0 if no example left fits."""
    top = int(longest[space])
    if space - top <= slack:
        return top
    sizes = np.flatnonzero(count[: space + 1])
    if not len(sizes):
        return 0
    partner = longest[space - sizes]
    alone = (partner == sizes) & (count[sizes] == 1)
    partner[alone] = longest[sizes[alone] - 1]
    good = sizes[sizes + partner >= space - slack]
    return int(good[-1]) if len(good) else top
