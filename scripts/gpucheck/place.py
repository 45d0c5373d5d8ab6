"""Where the checks run, and what they learn of it from each other."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpucheck.report import Figure, Found, SkippedError


@dataclass(frozen=True)
class Place:
    """A device, or a pretend one: real numbers, no clock, no memory of its own."""

    device: torch.device
    pretend: bool = False
    measured: dict[str, float] = field(default_factory=dict)
    """`matmul` in FLOP/s and `copy` in bytes/s, once they were measured."""

    def needs_a_gpu(self, what: str) -> None:
        """Raise SkippedError on a pretend device."""
        if self.pretend:
            raise SkippedError(f"a pretend device has no {what}")

    def settle(self) -> None:
        """Wait for the device; raises what a kernel did wrong."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clean_(self) -> str:
        """Give back the memory of what is no longer used, whatever became of it. Returns why no
        other check can run, if the device is lost."""
        gc.collect()
        try:
            self.settle()
            torch.cuda.empty_cache()
        except RuntimeError as error:  # after an illegal access every later call fails too
            return f"the device is lost: {str(error).splitlines()[0]}"
        return ""


@dataclass(frozen=True)
class Check:
    """A check by its name, `subject/case`."""

    name: str
    run: Callable[[Place], Found]
    seconds: float
    """What it may take on an H200, an estimate until it was measured: with less time left it is
    left out."""


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, Frobenius, in float64 on the CPU."""
    theirs = expected.detach().cpu().double()
    return float((found.detach().cpu().double() - theirs).norm() / theirs.norm())


def differences(pairs: dict[str, tuple[Tensor, Tensor]], bound: float) -> tuple[Figure, ...]:
    """The relative difference of each (found, expected), to be at most `bound`."""
    return tuple(Figure(name, relative(*pair), bound) for name, pair in pairs.items())


def farthest(found: list[float], expected: list[float]) -> float:
    """The largest relative difference of two series; NaN if one of them has it."""
    assert len(found) == len(expected) > 0, (len(found), len(expected))
    off = [abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)]
    return float("nan") if any(one != one for one in off) else max(off)
