"""Peak memory of a step against loractl's own estimate, and what happens when there is too little.

torch's allocator is asked, so that only bytes of tensors count, and no CUDA context.
"""

from dataclasses import dataclass
from functools import partial

import torch

from gpucheck.models import SMALL, batch_of, made, shape_of
from gpucheck.place import Check, Place
from gpucheck.report import Figure, Found, SkippedError
from gpucheck.runs import Run, Way, Window, prepare
from loractl.errors import is_out_of_memory
from loractl.models.packed_load import pack_
from loractl.models.shape import read as shapes
from loractl.planning.request import Request, memory_of
from loractl.quant.kinds import Quantization
from loractl.records import DataState

GIB = 1 << 30
OFF = 0.1
"""Of the peak, in either direction. cuBLAS's workspace, 32 MiB, is not in the estimate."""
RANK, RATE = 16, 1e-4
STEPS = 3
"""The optimizer's state is there from the second on."""
KEPT = 64 << 20
"""Bytes that may be allocated after an error beside those before: cuBLAS's workspaces."""


@dataclass(frozen=True)
class Case:
    """A way to train a model of a size, and the same in the words of the estimate."""

    way: Way
    method: str = "lora"  # of the estimate: full, lora or qlora
    size: str = "1B"


CASES = {
    "lora": Case(Way(rank=RANK, learning_rate=RATE)),
    "checkpointing": Case(Way(rank=RANK, learning_rate=RATE, checkpointing=True)),
    "dropout": Case(Way(rank=RANK, learning_rate=RATE, dropout=0.05)),
    "plain": Case(Way(rank=RANK, learning_rate=RATE, fast=False)),
    "dora": Case(Way(rank=RANK, learning_rate=RATE, formula="dora", fast=False)),
    "nf4": Case(Way(rank=RANK, learning_rate=RATE, quantization="nf4"), "qlora"),
    "full": Case(Way(formula="full", learning_rate=RATE, fast=False), "full"),
}


def started(place: Place, chosen: Case) -> tuple[Run, list[Window], Request]:
    """A run in bfloat16, its rows, and what the estimate is asked about it."""
    way, shape = chosen.way, shape_of(chosen.size, tiny=place.pretend)
    rows, length = (2, 24) if place.pretend else (4, 2048)
    dtype = torch.float32 if chosen.method == "full" else torch.bfloat16
    model = made(shape, dtype, place.device)
    if way.quantization:
        pack_(model, Quantization(way.quantization, "bfloat16"), dense=False)
    run = prepare(model, way, torch.bfloat16)
    batches = [batch_of([[length]] * rows, shape["vocab_size"], seed) for seed in range(STEPS)]
    share = batches[0].n_trained / batches[0].n_tokens
    request = Request(
        rank=way.rank, method=way.formula, length=length, batch=rows, packing=False,
        checkpointing=way.checkpointing, dropout=way.dropout, fast=way.fast,
        quantization=way.quantization or "none", trained_share=share,
    )  # fmt: skip
    return run, [([one], DataState(0, i + 1, STEPS)) for i, one in enumerate(batches)], request


def peak(place: Place, *, name: str) -> Found:
    chosen, before = CASES[name], torch.cuda.memory_allocated()
    run, rows, request = started(place, chosen)
    if not place.pretend:
        torch.cuda.reset_peak_memory_stats()  # loading is not part of a step
    run.go(rows)
    found = shapes.from_config(shape_of(chosen.size, tiny=place.pretend), where=chosen.size)
    predicted = memory_of(found, request, chosen.method)
    if place.pretend:
        raise SkippedError(
            f"a pretend device counts no bytes; {STEPS} steps ran, estimated are"
            f" {predicted.allocated:,} bytes"
        )
    real = torch.cuda.max_memory_allocated() - before
    off = predicted.allocated / real - 1
    figures = (
        Figure("estimate off by", abs(off), OFF),
        Figure("peak", real / GIB, unit="GiB"),
        Figure("estimate", predicted.allocated / GIB, unit="GiB"),
    )
    return Found(figures, more={"phases": predicted.phases})


def too_little(place: Place) -> Found:
    """A step without memory ends in an ordinary error that is known as such; the next one, with
    memory, is the step that it would have been."""
    chosen = Case(Way(rank=RANK, learning_rate=RATE), size=SMALL)
    run, rows, _ = started(place, chosen)
    if place.pretend:
        run.go(rows[:1])
        raise SkippedError("a pretend device is never full")
    expected, _, _ = started(place, chosen)
    wanted = [one.loss for one in expected.go(rows[:2])]
    del expected
    found = [one.loss for one in run.go(rows[:1])]
    before = torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    filled = torch.empty(torch.cuda.mem_get_info()[0] - GIB // 2, dtype=torch.uint8, device="cuda")
    error: BaseException | None = None
    try:
        run.go(rows[1:2])
    except torch.OutOfMemoryError as raised:
        error = raised.with_traceback(None)  # whose frames hold the tensors of the step
    del filled
    assert error is not None, "the step had enough memory"
    assert is_out_of_memory(error), f"not known as out of memory: {error}"
    run.optimizer.zero_grad(set_to_none=True)
    left = torch.cuda.memory_allocated() - before
    found += [one.loss for one in run.go(rows[1:2])]
    off = max(abs(a - b) / b for a, b in zip(found, wanted, strict=True))
    figures = (
        Figure("losses", off, 5e-3),
        Figure("bytes left behind", max(0, left), KEPT),
    )
    return Found(figures, str(error).splitlines()[0][:120])


CHECKS = (
    *(Check(f"memory/{name}", partial(peak, name=name), 8) for name in CASES),
    Check("memory/too-little", too_little, 8),
)
