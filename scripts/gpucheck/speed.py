"""Tokens a second at the shapes of real models, against transformers' layers and a PEFT loop.

Each way takes the same rows with the same random base, and must come to the same first loss. Time
is that of the device, between two events around eight steps after three warm-ups.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gpucheck.models import SMALL, batch_of, made, shape_of
from gpucheck.place import Check, Place
from gpucheck.report import Figure, Found, SkippedError
from gpucheck.runs import Way, prepare
from gpucheck.waits import counted
from loractl.records import Batch, DataState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANK, RATE = 16, 1e-4
WARM, TIMED = 3, 8
ROWS = [[512] * 4] * 4
"""16 examples in four packed rows: 8,192 tokens a step."""
TINY_ROWS = [[12, 8], [20]]
OFF = 1e-2
"""Relative, of the first loss in bfloat16, which the ways round in different places."""
TOP = 15
WAYS = {
    "auto": Way(rank=RANK, learning_rate=RATE),
    "plain": Way(rank=RANK, learning_rate=RATE, fast=False),
}
Steps = Callable[[list[Batch]], list[float]]
"""Takes one step per batch; the loss of each."""


@dataclass(frozen=True)
class Work:
    """A model to train in one way, and what is to be computed in a step."""

    take: Steps
    batch: Callable[[int], Batch]  # by number
    tokens: int
    flops: float


def work_of(place: Place, size: str, way: str) -> Work:
    shape = shape_of(size, tiny=place.pretend)
    rows = TINY_ROWS if place.pretend else ROWS
    model = made(shape, torch.bfloat16, place.device)
    first = batch_of(rows, shape["vocab_size"], 0)
    flops = flops_of(model, rows, first.n_trained)
    take = _peft_loop(model, place) if way == "peft" else _our_steps(model, WAYS[way])
    return Work(take, lambda i: batch_of(rows, shape["vocab_size"], i), first.n_tokens, flops)


def flops_of(model: "PreTrainedModel", rows: list[list[int]], trained: int) -> float:
    """What a step must compute, twice a multiplication: the frozen products forward and for the
    gradient of their input (4 per weight and token, of the head for trained tokens alone); A and B
    with their own gradients too (6); causal attention within each example (2 n^2 per value of all
    heads forward, 2.5 times that backward). Norms and the like do not count."""
    config, head = model.config, model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linears = [one for one in model.modules() if isinstance(one, nn.Linear) and one is not head]
    n = sum(map(sum, rows))
    frozen = 4 * (sum(one.weight.numel() for one in linears) * n + head.weight.numel() * trained)
    thin = 6 * RANK * n * sum(one.in_features + one.out_features for one in linears)
    width = config.num_attention_heads * model.base_model.layers[0].self_attn.head_dim
    squares = sum(length**2 for row in rows for length in row)
    return float(frozen + thin + 7 * squares * width * config.num_hidden_layers)


def _our_steps(model: "PreTrainedModel", way: Way) -> Steps:
    run = prepare(model, way.longer(WARM + TIMED + 4), torch.bfloat16)

    def take(batches: list[Batch]) -> list[float]:
        return [one.loss for one in run.go([([batch], DataState(0, 0)) for batch in batches])]

    return take


def _peft_loop(model: "PreTrainedModel", place: Place) -> Steps:
    """The loop that PEFT's README has, with fused AdamW and clipping as ours."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise SkippedError(f"no PEFT here: {error}") from None
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear",
                        task_type="CAUSAL_LM")  # fmt: skip
    wrapped: Any = get_peft_model(model, config)
    trained = [one for one in wrapped.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)

    def take(batches: list[Batch]) -> list[float]:
        losses = []
        for batch in batches:
            there = batch.to(place.device)
            loss = wrapped(
                input_ids=there.input_ids, position_ids=there.position_ids, labels=there.labels
            ).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))  # once a step, as ours
        return losses

    return take


def measure(place: Place, *, size: str, way: str) -> Found:
    work = work_of(place, size, way)
    batches = [work.batch(i) for i in range(WARM + TIMED)]
    if not place.pretend:
        torch.cuda.reset_peak_memory_stats()
    first = work.take(batches[:WARM])[0]
    expected = place.measured.setdefault(f"first loss {size}", first)
    figures = [Figure("first loss", first), Figure("off that of the first way",
                                                  abs(first / expected - 1), OFF)]  # fmt: skip
    if not place.pretend:
        figures += _timed(place, work, batches[WARM:])
    with counted(place) as waits:
        work.take([work.batch(0)])
    figures.append(Figure("waits in a step", waits.total()))
    note = "a pretend device has no speed" if place.pretend else ""
    return Found(tuple(figures), note, {"waits": dict(waits), "flops": work.flops})


def _timed(place: Place, work: Work, batches: list[Batch]) -> list[Figure]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work.take(batches)
    end.record()
    torch.cuda.synchronize()
    seconds = begin.elapsed_time(end) / 1e3 / len(batches)
    figures = [
        Figure("speed", work.tokens / seconds, unit="tokens/s"),
        Figure("step", seconds * 1e3, unit="ms"),
        Figure("peak", torch.cuda.max_memory_allocated() / (1 << 30), unit="GiB"),
    ]
    if ceiling := place.measured.get("matmul"):
        share = 100 * work.flops / seconds / ceiling
        figures.append(Figure("MFU", share, unit="% of the matmul measured here"))
    return figures


def profile(place: Place, *, size: str) -> Found:
    """The kernels of one step that take longest, and how many there are."""
    place.needs_a_gpu("kernels")
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    work = work_of(place, size, "auto")
    work.take([work.batch(i) for i in range(WARM)])
    with recorded(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        work.take([work.batch(WARM)])
        torch.cuda.synchronize()
    every = [
        one for one in found.key_averages()
        if one.device_type.name == "CUDA" and not one.is_user_annotation
    ]  # fmt: skip
    every.sort(key=lambda one: one.self_device_time_total, reverse=True)
    total = sum(one.self_device_time_total for one in every)
    top = [
        {"kernel": one.key, "calls": one.count, "ms": one.self_device_time_total / 1e3}
        for one in every[:TOP]
    ]
    figures = (
        Figure("kernels", sum(one.count for one in every)),
        Figure("busy", total / 1e3, unit="ms"),
    )
    return Found(figures, top[0]["kernel"][:80] if top else "", {"kernels": top})


CHECKS = (
    *(
        Check(f"speed/{size}-{way}", partial(measure, size=size, way=way), seconds)
        for size, seconds in (("8B", 25), (SMALL, 10))
        for way in (*WAYS, "peft")
    ),
    Check("speed/8B-profile", partial(profile, size="8B"), 20),
)
