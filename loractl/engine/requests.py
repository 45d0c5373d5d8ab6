"""What commands ask the engine to make of adapters and models. No torch: flags are read into it."""

from dataclasses import dataclass

HOW = ("linear", "cat", "svd", "ties", "dare", "dare_ties")
SPARSE = ("ties", "dare", "dare_ties")
RANDOM = ("dare", "dare_ties")


@dataclass(frozen=True)
class Recipe:
    """How adapters are combined; what is None has its default or does not apply."""

    how: str
    rank: int | None = None
    density: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class ExtractRequest:
    """What to extract: a rank or a share of the energy, of tables too or not."""

    rank: int | None
    energy: float | None
    embeddings: bool

    @property
    def size(self) -> dict[str, float | None]:
        """The one of rank and energy that was asked for, by its name."""
        return {"rank": self.rank} if self.rank else {"energy": self.energy}
