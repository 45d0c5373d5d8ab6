"""The uncertainty of a figure computed from rows: the bootstrap over rows.

Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979): resample
the rows with replacement and compute the figure from each sample; the middle 95% of the results is
the interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000


@dataclass(frozen=True)
class Figure:
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float


def ratio(
    sums: Sequence[float],
    counts: Sequence[float],
    *,
    less: Sequence[float] | None = None,
    seed: int = 0,
) -> Figure:
    """The sum of `sums` divided by the sum of `counts`, one pair per row: a mean weighted by count.

    With `less`, that mean minus the mean of `less` over the same rows and counts: a paired
    difference, in which the row-to-row variation common to both cancels.
    """
    top = np.asarray(sums, dtype=np.float64)
    if less is not None:
        top = top - np.asarray(less, dtype=np.float64)
    bottom = np.asarray(counts, dtype=np.float64)
    assert len(top) == len(bottom) > 0 and bottom.sum() > 0, (len(top), len(bottom))
    generator = np.random.RandomState(seed)
    found = np.empty(DRAWS)
    for draw in range(DRAWS):
        rows = generator.randint(0, len(top), len(top))
        weight = bottom[rows].sum()
        found[draw] = top[rows].sum() / weight if weight else np.nan
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return Figure(float(top.sum() / bottom.sum()), float(low), float(high))
