"""Examples -> rows of at most max_length tokens. Pure: lengths in, indices out."""

from collections.abc import Sequence

WINDOW = 2048
"""Examples packed together: enough to fill rows to about 99 %, few enough to start at once."""


def pack(lengths: Sequence[int], max_length: int, *, window: int = WINDOW) -> list[list[int]]:
    """Put example indices into rows, first-fit decreasing within each window of `window` examples.

    Every index appears once; no row exceeds max_length tokens. Ties keep the order given, so that
    the result is a function of its arguments alone.
    """
    rows: list[list[int]] = []
    for start in range(0, len(lengths), window):
        indices = range(start, min(start + window, len(lengths)))
        rows += _first_fit_decreasing(indices, lengths, max_length)
    return rows


def _first_fit_decreasing(
    indices: Sequence[int], lengths: Sequence[int], max_length: int
) -> list[list[int]]:
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(indices, key=lambda i: -lengths[i]):
        length = lengths[index]
        assert length <= max_length, f"example {index} has {length} tokens, over {max_length}"
        for number, space in enumerate(free):
            if length <= space:
                rows[number].append(index)
                free[number] -= length
                break
        else:
            rows.append([index])
            free.append(max_length - length)
    return rows
