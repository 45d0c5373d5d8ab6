"""Which method, with or without checkpointing, and which micro-batch fit into memory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from loractl.lora.ranks import ModuleRank
from loractl.models.shape import read as shapes
from loractl.models.shape.sizes import SIZES
from loractl.models.shape.types import ModelShape
from loractl.planning import devices
from loractl.planning.recommend import Choice
from loractl.planning.request import Request, memory_of, ranks_of

ORDER = ("full", "lora", "qlora")
MODEL = (
    "loractl's memory model: see loractl estimate; scripts/bench/RESULTS.md has its measured error"
)


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch of a method that fits; 0 if not even one row does."""

    method: str
    checkpointing: bool
    batch: int
    gpu_bytes: int  # with this micro-batch, or with one row if none fits
    smallest_gpu: str | None  # for one row


def fits(shape: ModelShape, request: Request, memory: float, most: int) -> list[Fit]:
    """Every method with and without checkpointing: the largest micro-batch up to `most`."""
    ranks = ranks_of(shape, request)
    return [
        _fit_of(shape, request, ranks, method, checkpointing, memory, most)
        for method in ORDER
        for checkpointing in (False, True)
    ]


def _fit_of(
    shape: ModelShape,
    request: Request,
    ranks: Mapping[str, ModuleRank],
    method: str,
    checkpointing: bool,
    memory: float,
    most: int,
) -> Fit:
    def needed(batch: int) -> int:
        asked = replace(request, batch=batch, accumulation=-(-most // batch))
        return memory_of(shape, asked, method, checkpointing=checkpointing, ranks=ranks).on_gpu

    batch = most
    while batch and not devices.fits(needed(batch), memory):
        batch //= 2
    one = needed(1)
    smallest = next((gpu.label for gpu in devices.fitting(one)), None)
    return Fit(method, checkpointing, batch, needed(batch) if batch else one, smallest)


def choose(found: list[Fit], most: int) -> Fit | None:
    """The best fit: LoRA, else QLoRA; checkpointing only if it fits more than four times the rows.

    Full fine-tuning is shown but not chosen: LoRA learns as much from data within its capacity.
    """
    for method in ("lora", "qlora"):
        plain, again = (fit for fit in found if fit.method == method)
        if plain.batch and 4 * plain.batch >= min(again.batch, most):
            return plain
        if again.batch:
            return again
    return None


def of_memory(
    shape: ModelShape, request: Request, memory: float, most: int
) -> tuple[dict[str, Choice], list[dict[str, Any]]]:
    """The choices that depend on memory, and the table they come from."""
    found = fits(shape, request, memory, most)
    table = [asdict(fit) for fit in found]
    best = choose(found, most)
    size = f"{memory / devices.GIB:.4g} GiB"
    if best is None:
        least = found[-1]
        reason = (
            f"nothing fits in {size}: QLoRA with checkpointing and one row needs"
            f" {least.gpu_bytes / devices.GIB:.3g} GiB; {_instead(shape, request, memory)}"
        )
        return {"method": Choice(None, reason, MODEL)}, table
    used = f"{best.gpu_bytes / devices.GIB:.3g} GiB of {size}"
    why = f"the base model fits unquantized, which is faster and exact: {used}"
    if best.method == "qlora":
        plain = next(fit for fit in found if fit.method == "lora" and fit.checkpointing)
        why = (
            f"the base model fits only when quantized to 4 bits (model.quantization: nf4): {used};"
            f" LoRA needs {plain.gpu_bytes / devices.GIB:.3g} GiB with checkpointing and one row"
        )
    again = (
        "activations are computed twice, which is a third more work, to make room for more rows"
        if best.checkpointing
        else "not needed: the activations fit"
    )
    return {
        "method": Choice(best.method, why, MODEL),
        "gradient_checkpointing": Choice(best.checkpointing, again, MODEL),
        "batch_size": Choice(best.batch, "the largest micro-batch that fits", MODEL),
        "gradient_accumulation": Choice(
            -(-most // best.batch), f"{best.batch} rows at a time add up to {most} per step", MODEL
        ),
    }, table


def _instead(shape: ModelShape, request: Request, memory: float) -> str:
    """The largest known size that fits without quantization, in words."""
    one = replace(request, batch=1, accumulation=1)
    for size in reversed(SIZES):
        other = shapes.named(size)
        ranks = ranks_of(other, one)
        needed = memory_of(other, one, "lora", checkpointing=True, ranks=ranks).on_gpu
        if other.parameters < shape.parameters and devices.fits(needed, memory):
            return f"--model {size} is the largest size that LoRA fits into this memory"
    return "LoRA fits none of the known smaller sizes into this memory"
