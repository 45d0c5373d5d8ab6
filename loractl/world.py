"""The rank of this process among several. No torch: communication is in training/distributed.

A single process is World(0, 1). Everything that depends on the number of processes takes a World:
the rows of the global batch, what is summed, who writes and who prints.
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
        """Whether this process writes and prints for all."""
        return self.rank == 0

    def share_of(self, rows: Sequence[T]) -> Sequence[T]:
        """The rows that this process takes; the shares of all processes make up the whole, and
        their sizes differ by at most one."""
        return rows[self.rank :: self.size]


ALONE = World(0, 1)
"""The only process."""
