"""GPUs by memory size, and which of them a run fits on."""

from dataclasses import dataclass

GIB = 1024**3
USABLE = 0.95
"""Share of a GPU that a run may fill: the rest allows for memory lost to fragmentation."""


@dataclass(frozen=True)
class Gpu:
    name: str
    gib: int  # the advertised GB, which vendors count as GiB

    @property
    def label(self) -> str:
        return f"{self.gib} GB ({self.name})"


GPUS = (
    Gpu("RTX 4060", 8),
    Gpu("RTX 3060", 12),
    Gpu("T4, RTX 4080", 16),
    Gpu("RTX 3090, RTX 4090, L4, A10G", 24),
    Gpu("RTX 5090", 32),
    Gpu("A100", 40),
    Gpu("L40S, A6000", 48),
    Gpu("A100, H100", 80),
    Gpu("H200", 141),
    Gpu("B200", 180),
    Gpu("MI300X", 192),
)


def fits(n_bytes: int, memory: float) -> bool:
    """Whether a run of `n_bytes`, CUDA context included, fits into `memory` bytes."""
    return n_bytes <= USABLE * memory


def fitting(n_bytes: int) -> list[Gpu]:
    """The GPUs that a run fits on, smallest first."""
    return [gpu for gpu in GPUS if fits(n_bytes, gpu.gib * GIB)]
