"""Which of how many processes this one is. No torch: what they exchange is in training/distributed.

One process is World(0, 1). Everything that depends on the number of processes is given one: which
rows of the global batch are taken, what is summed, who writes and who speaks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`, counted from 0."""

    rank: int
    size: int

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.size, f"rank {self.rank} of {self.size} processes"

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share_of(self, rows: Sequence[T]) -> Sequence[T]:
        """The part of some rows that this process takes; the parts of all make the whole, and
        their sizes differ by one at most."""
        return rows[self.rank :: self.size]


ALONE = World(0, 1)
"""The only process."""
