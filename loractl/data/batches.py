"""Order, packing and batching: examples -> windows of micro-batches, resumable at any of them.

A window is what one optimizer step takes: `batch_size * accumulation` rows. Which rows it holds is
a pure function of (seed, epoch, index) and does not depend on how it is cut into micro-batches.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from loractl.data.pack import pack
from loractl.records import UNTRAINED, Batch, DataState, Example


@dataclass(frozen=True)
class BatchPlan:
    """How examples become windows."""

    batch_size: int  # rows a micro-batch
    accumulation: int  # micro-batches a window
    max_length: int
    packing: bool
    seed: int = 0

    @property
    def window(self) -> int:
        return self.batch_size * self.accumulation


def epoch_rows(examples: Sequence[Example], plan: BatchPlan, epoch: int) -> list[list[int]]:
    """The rows of an epoch, each a list of example indices, shuffled by (seed, epoch)."""
    rng = random.Random(f"{plan.seed}/{epoch}")
    order = list(range(len(examples)))
    rng.shuffle(order)
    if not plan.packing:
        return [[index] for index in order]
    packed = pack([len(examples[index].ids) for index in order], plan.max_length)
    rows = [[order[place] for place in row] for row in packed]
    rng.shuffle(rows)
    return rows


def count_windows(examples: Sequence[Example], plan: BatchPlan, epochs: float) -> int:
    """Optimizer steps that `epochs` passes take; the last window of a pass may be smaller."""
    whole = math.floor(epochs)
    rows = [len(epoch_rows(examples, plan, epoch)) for epoch in range(math.ceil(epochs))]
    steps = sum(math.ceil(count / plan.window) for count in rows[:whole])
    if epochs > whole:
        steps += math.ceil(rows[whole] * (epochs - whole) / plan.window - 1e-9)
    return steps


def windows(
    examples: Sequence[Example], plan: BatchPlan, start: DataState
) -> Iterator[tuple[list[Batch], DataState]]:
    """Yield windows without end, from `start` on, each with the state right after it."""
    state = start
    while True:
        rows = epoch_rows(examples, plan, state.epoch)
        while state.row < len(rows):
            taken = rows[state.row : state.row + plan.window]
            state = DataState(state.epoch, state.row + len(taken), len(rows))
            # The state of an epoch's last window is the start of the next one.
            after = state if state.row < len(rows) else DataState(state.epoch + 1, 0)
            yield micro_batches(examples, taken, plan.batch_size), after
        state = DataState(state.epoch + 1, 0)


def in_order(examples: Sequence[Example], plan: BatchPlan) -> Iterator[Batch]:
    """Every example once, longest rows first: for evaluation, so that memory peaks at the start."""
    lengths = [len(example.ids) for example in examples]
    if plan.packing:
        rows = pack(lengths, plan.max_length)
    else:
        rows = [[i] for i in sorted(range(len(examples)), key=lambda i: -lengths[i])]
    yield from micro_batches(examples, rows, plan.batch_size)


def micro_batches(
    examples: Sequence[Example], rows: Sequence[Sequence[int]], batch_size: int
) -> list[Batch]:
    """Cut rows into micro-batches of like length, so that little of them is padding."""

    def length(row: Sequence[int]) -> int:
        return sum(len(examples[index].ids) for index in row)

    ordered = sorted(rows, key=length, reverse=True)
    return [
        collate([[examples[index] for index in row] for row in ordered[start : start + batch_size]])
        for start in range(0, len(ordered), batch_size)
    ]


def collate(rows: Sequence[Sequence[Example]]) -> Batch:
    """Lay rows of examples out as tensors of the longest row's length."""
    length = max(sum(len(example.ids) for example in row) for row in rows)
    shape = (len(rows), length)
    input_ids = torch.zeros(
        shape, dtype=torch.int64
    )  # padding is told by its place, never by its id
    labels = torch.full(shape, UNTRAINED, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    for number, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example.ids)
            input_ids[number, start:end] = torch.tensor(example.ids)
            labels[number, start:end] = torch.tensor(example.labels)
            labels[number, start] = UNTRAINED  # the token before it belongs to another example
            position_ids[number, start:end] = torch.arange(end - start)
            start = end
        if len(row) == 1:
            # Counting on through the padding keeps a plain causal mask, the fast one; a real token
            # never looks ahead at it.
            position_ids[number] = torch.arange(length)
        else:
            position_ids[number, start:] = torch.arange(length - start)
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        n_tokens=sum(len(example.ids) for row in rows for example in row),
        lines=tuple(example.line for row in rows for example in row),
    )
