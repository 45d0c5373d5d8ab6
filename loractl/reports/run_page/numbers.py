"""Numbers from a run's files, which may be damaged or edited: finite ones, and few enough to draw.

metrics.jsonl is read by rows of any length and content; what is no finite number is left out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]

MOST_POINTS = 400
"""Of a curve: more than the pixels that it has."""
LARGEST = 1e300


def number(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None  # False for NaN too


def points(rows: Rows, key: str) -> Points:
    """(step, value) of the rows that have both, by step; of several of a step the last."""
    found: dict[float, float] = {}
    for row in rows:
        step, value = number(row.get("step")), number(row.get(key))
        if step is not None and value is not None:
            found[step] = value
    return sorted(found.items())


def thinned(curve: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` points that look the same: of each stretch the lowest and the highest."""
    if len(curve) <= most:
        return curve
    size = math.ceil(len(curve) / (most // 2 - 1))
    kept = {curve[0], curve[-1]}
    for start in range(0, len(curve), size):
        stretch = curve[start : start + size]
        kept |= {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return sorted(kept)


def last(rows: Rows, key: str) -> float | None:
    """The value of the last step that has one."""
    return next((value for _, value in reversed(points(rows, key))), None)


def training_seconds(rows: Rows) -> float:
    """Seconds that the steps took, without evaluations: tokens by tokens per second."""
    total = 0.0
    for row in rows:
        tokens, speed = number(row.get("tokens")), number(row.get("tokens_per_s"))
        if tokens and speed and speed > 0:
            total += tokens / speed
    return total
