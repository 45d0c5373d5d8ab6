"""Order, packing and batching: examples -> windows of micro-batches, resumable at any of them.

A window holds the rows of one optimizer step: `batch_size * accumulation` of them. Which rows they
are is a pure function of (seed, epoch, index), however the window is cut into micro-batches.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from loractl.data.pack import Indices, Rows, pack
from loractl.data.store import lengths_of
from loractl.records import UNTRAINED, Batch, DataState, Example
from loractl.world import ALONE, World

BUCKETS = 64
"""How many windows have their rows sorted by length together when rows are padded."""

TOGETHER, TOKENS_TOGETHER = 4, 8192
"""Of rows that are only evaluated, up to this many times a micro-batch go together, and up to so
many tokens: nothing of them is kept, and what they start alike is computed once."""


@dataclass(frozen=True)
class BatchPlan:
    """How examples become windows."""

    batch_size: int  # rows per micro-batch
    accumulation: int  # micro-batches per window
    max_length: int
    packing: bool
    seed: int = 0
    parts: tuple[tuple[int, float], ...] = ()
    """For a mixture: how many examples each source has, and how often an epoch uses them."""

    @property
    def window(self) -> int:
        return self.batch_size * self.accumulation

    @property
    def evaluated(self) -> int:
        """Rows that are evaluated together."""
        fit = TOKENS_TOGETHER // self.max_length
        return max(self.batch_size, min(TOGETHER * self.batch_size, fit))


def epoch_rows(examples: Sequence[Example], plan: BatchPlan, epoch: int) -> Rows:
    """The rows of an epoch, each a list of example indices, shuffled by (seed, epoch)."""
    rng = _generator_of(plan.seed, epoch)
    lengths = lengths_of(examples)
    order = _draw_indices(len(examples), plan.parts, rng)
    rng.shuffle(order)
    if not plan.packing:
        return Rows.singles(_bucket_by_length(order, lengths[order], plan.window, rng))
    packed = pack(lengths[order], plan.max_length)
    rows = Rows(order[packed.indices], packed.starts)
    return rows.reordered(rng.permutation(len(rows)).astype(np.int32))


def _generator_of(seed: int, epoch: int) -> np.random.RandomState:
    """numpy's legacy generator: its streams are frozen, so later versions keep the same order."""
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4").astype(np.uint32))


def _draw_indices(
    count: int, parts: tuple[tuple[int, float], ...], rng: np.random.RandomState
) -> Indices:
    """Indices of an epoch: a source of weight 2 appears twice, of weight 0.5 a random half."""
    if not parts:
        return np.arange(count, dtype=np.int32)
    assert sum(size for size, _ in parts) == count, (parts, count)
    taken, start = [], 0
    for size, weight in parts:
        whole = math.floor(weight)
        taken += [np.arange(start, start + size)] * whole
        taken.append(start + rng.permutation(size)[: round((weight - whole) * size)])
        start += size
    return np.concatenate(taken).astype(np.int32)


def _bucket_by_length(
    order: Indices, lengths: Indices, window: int, rng: np.random.RandomState
) -> Indices:
    """Give each window examples of similar length, to save padding; windows in random order.

    The examples of `BUCKETS` windows are sorted together; the remainder makes a smaller window at
    the end of the epoch.
    """
    whole = len(order) - len(order) % window
    found = [order[whole:]]
    for start in range(0, whole, BUCKETS * window):
        stop = min(start + BUCKETS * window, whole)
        by_length = np.argsort(-lengths[start:stop], kind="stable") + start
        cut = by_length.reshape(-1, window)
        found.insert(-1, order[cut[rng.permutation(len(cut))].reshape(-1)])
    return np.concatenate(found)


class Epochs:
    """`epoch_rows` of some examples, with those of one epoch cached: a run counts the steps of all
    its epochs before it starts the first."""

    def __init__(self, examples: Sequence[Example], plan: BatchPlan) -> None:
        self.examples, self.plan = examples, plan
        self._kept: tuple[int, Rows] | None = None

    def rows(self, epoch: int) -> Rows:
        if self._kept is None or self._kept[0] != epoch:
            self._kept = epoch, epoch_rows(self.examples, self.plan, epoch)
        return self._kept[1]


def count_windows(epochs: Epochs, count: float) -> int:
    """The optimizer steps in `count` passes; the last window of a pass may be smaller."""
    whole, window = math.floor(count), epochs.plan.window
    steps = 0
    for epoch in reversed(range(math.ceil(count))):  # the first one last: it stays cached
        rows = len(epochs.rows(epoch))
        part = 1 if epoch < whole else count - whole
        steps += math.ceil(rows * part / window - 1e-9)
    return steps


def windows(
    epochs: Epochs, start: DataState, world: World = ALONE
) -> Iterator[tuple[list[Batch], DataState]]:
    """Yield windows endlessly from `start`, each with the state right after it.

    A process takes its share of the rows of every micro-batch; the states, and the rows of all
    processes together, are the same for any number of processes.
    """
    examples, plan, state = epochs.examples, epochs.plan, start
    while True:
        rows = epochs.rows(state.epoch)
        while state.row < len(rows):
            taken = rows[state.row : state.row + plan.window]
            state = DataState(state.epoch, state.row + len(taken), len(rows))
            # The state of an epoch's last window is the start of the next one.
            after = state if state.row < len(rows) else DataState(state.epoch + 1, 0)
            yield micro_batches(examples, taken, plan.batch_size, world), after
        state = DataState(state.epoch + 1, 0)


def in_order(
    examples: Sequence[Example], plan: BatchPlan, world: World = ALONE, *, size: int | None = None
) -> Iterator[Batch]:
    """Every example once, or this process's share of them, longest rows first so that memory peaks
    at the start: for evaluation. `size`: rows of a batch, by default those evaluated together."""
    lengths = lengths_of(examples)
    by_length = np.argsort(-lengths, kind="stable").astype(np.int32)
    rows = pack(lengths, plan.max_length) if plan.packing else Rows.singles(by_length)
    if plan.packing:
        sizes = np.add.reduceat(lengths[rows.indices], rows.starts[:-1])
        rows = rows.reordered(np.argsort(-sizes, kind="stable").astype(np.int32))
    size = size or plan.evaluated
    for start in range(0, len(rows), size):
        for batch in micro_batches(examples, rows[start : start + size], size, world):
            yield replace(batch, examples=())  # its indices are not into the training data


def micro_batches(
    examples: Sequence[Example],
    rows: Sequence[Sequence[int]],
    batch_size: int,
    world: World = ALONE,
) -> list[Batch]:
    """Cut rows into micro-batches of similar length, to save padding, and keep this process's rows
    of each; micro-batches in which it has none are left out."""
    read = [([examples[index] for index in row], row) for row in rows]
    read.sort(key=lambda one: sum(len(example.ids) for example in one[0]), reverse=True)
    wholes = [read[start : start + batch_size] for start in range(0, len(read), batch_size)]
    parts = [part for whole in wholes if (part := world.share_of(whole))]
    return [
        replace(
            collate([row for row, _ in part]),
            examples=tuple(index for _, indices in part for index in indices),
        )
        for part in parts
    ]


def collate(rows: Sequence[Sequence[Example]]) -> Batch:
    """Lay rows of examples out as tensors of the longest row's length."""
    length = max(sum(len(example.ids) for example in row) for row in rows)
    shape = (len(rows), length)
    input_ids = torch.zeros(
        shape, dtype=torch.int64
    )  # padding is known by its position, never by its id
    labels = torch.full(shape, UNTRAINED, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    weighs = any(example.weights is not None for row in rows for example in row)
    weights = torch.zeros(shape) if weighs else None
    for number, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example.ids)
            input_ids[number, start:end] = torch.tensor(example.ids)
            labels[number, start:end] = torch.tensor(example.labels)
            labels[number, start] = UNTRAINED  # the token before it belongs to another example
            position_ids[number, start:end] = torch.arange(end - start)
            if weights is not None:
                of_each = example.weights or [1.0] * len(example.ids)
                weights[number, start:end] = torch.tensor(of_each)
            start = end
        if len(row) == 1:
            # Counting on through the padding keeps the mask plainly causal, which is fastest; no
            # real token attends ahead to the padding.
            position_ids[number] = torch.arange(length)
        else:
            position_ids[number, start:] = torch.arange(length - start)
    if weights is not None:
        weights[labels == UNTRAINED] = 0.0
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        n_tokens=sum(len(example.ids) for row in rows for example in row),
        lines=tuple(e.where for row in rows for e in row),
        sizes=tuple(sum(len(example.ids) for example in row) for row in rows),
        weights=weights,
    )
