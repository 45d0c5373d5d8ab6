"""What commands ask the engine to do with adapters and models, parsed from flags without torch."""

from dataclasses import dataclass

HOW = ("linear", "cat", "svd", "ties", "dare", "dare_ties")
SPARSE = ("ties", "dare", "dare_ties")
RANDOM = ("dare", "dare_ties")


@dataclass(frozen=True)
class Recipe:
    """How adapters are combined; None means the default, or not applicable."""

    how: str
    rank: int | None = None
    density: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class ExtractRequest:
    """What to extract: up to a rank or a share of the energy, with or without embeddings."""

    rank: int | None
    energy: float | None
    embeddings: bool

    @property
    def size(self) -> dict[str, float | None]:
        """Whichever of rank and energy was asked for, by name."""
        return {"rank": self.rank} if self.rank else {"energy": self.energy}
