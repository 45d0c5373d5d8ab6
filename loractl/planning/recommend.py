"""Rank, targets, learning rate, batch and method for a task: each value with its reason and source.

The table and its rules are this project's own; published findings are cited with each value.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loractl.models.shape.families import UNPACKABLE
from loractl.models.shape.types import ModelShape
from loractl.planning import counts
from loractl.planning.request import Request, ranks_of

OURS = "this project's table"
REGRET = "LoRA Without Regret (Schulman 2025, thinkingmachines.ai/blog/lora)"
QLORA = "QLoRA, arXiv 2305.14314"
LORA = "LoRA, arXiv 2106.09685"
COOKBOOK = "tinker-cookbook, hyperparam_utils.py"

RANKS = {"simple": (4, 4, 8), "medium": (8, 8, 16), "complex": (16, 16, 32)}
"""Rank by task, for the size classes 7B, 13B (which includes 30B) and 70B."""
SWEEPS = {"simple": (1, 4), "medium": (8, 16), "complex": (32, 64)}
TARGETS = {"simple": "minimal", "medium": "attention", "complex": "all-linear"}
FEW, MANY = 1_000, 10_000  # rows
LOWEST, HIGHEST = 4, 64  # limits on the rank when few or many rows halve or double it
SIZES = ((10e9, "7B"), (50e9, "13B"), (float("inf"), "70B"))
LARGEST_BATCH = 16
ENOUGH_STEPS = 100  # optimizer steps; with fewer than half of them few tasks are learned
MOST_EPOCHS = 15
BITS_A_PARAMETER, BITS_A_TOKEN = 2, 1


@dataclass(frozen=True)
class RecommendRequest:
    """The arguments of `loractl recommend`, as typed."""

    task: str
    model: str
    data_size: str | None = None
    data: str | None = None
    memory: str | None = None
    dtype: str = "bfloat16"
    write: Path | None = None
    columns: tuple[str, ...] = ()  # FIELD=COLUMN


@dataclass(frozen=True)
class Choice:
    """A recommended value, the reason for it and its source."""

    value: Any
    reason: str
    source: str


@dataclass(frozen=True)
class Rows:
    """What is known about the training rows, from `row_counts`; `counted` says how they were
    counted."""

    rows: int
    tokens: int | None = None
    longest: int | None = None
    p99: int | None = None
    counted: str = ""
    shortest: int | None = None
    chat_template: str | None = None  # a built-in one that the rows need, if the model has none


def choices(task: str, shape: ModelShape, data: Rows | None) -> dict[str, Choice]:
    """Every value that depends on task, model and data; those that depend on memory come later."""
    rank = rank_of(task, shape, data)
    batch, length = _effective_batch(data), _max_length(shape, data)
    epochs = _choose_epochs(data, batch.value)
    return {
        "rank": rank,
        "alpha": Choice(2 * rank.value, "alpha is set to twice the rank", OURS),
        "sweep": _choose_sweep(task, rank.value),
        "target_modules": _choose_targets(task),
        "learning_rate": _learning_rate(shape, data),
        "effective_batch": batch,
        "epochs": epochs,
        "max_length": length,
        "packing": _choose_packing(shape, data, length.value, epochs.value, batch.value),
    }


def size_class(shape: ModelShape) -> str:
    """The column of the table that a model belongs to."""
    return class_of(shape.parameters)


def class_of(parameters: int) -> str:
    """The same for a number of parameters."""
    return next(name for most, name in SIZES if parameters < most)


def rank_of(task: str, shape: ModelShape, data: Rows | None) -> Choice:
    """The rank from the table, halved for few rows and doubled for many."""
    column = [name for _, name in SIZES].index(size_class(shape))
    rank = RANKS[task][column]
    reason = f"{task} task, {shape.parameters / 1e9:.3g}B parameters: {rank}"
    if data is not None and data.rows < FEW:
        halved = max(LOWEST, rank // 2)
        reason += f"; halved for fewer than {FEW:,} rows, but not below {LOWEST}: {halved}"
        rank = halved
    elif data is not None and data.rows > MANY:
        doubled = min(HIGHEST, 2 * rank)
        reason += f"; doubled for more than {MANY:,} rows, but not above {HIGHEST}: {doubled}"
        rank = doubled
    reason += ". Published: ranks from 1 to 64 made little difference on one task"
    return Choice(rank, reason, f"{OURS}; {LORA}, table 6")


def _choose_sweep(task: str, rank: int) -> Choice:
    low, high = SWEEPS[task]
    wide = (min(low, rank), max(high, rank))
    tried = [2**n for n in range(11) if wide[0] <= 2**n <= wide[1]]
    widened = "" if wide == (low, high) else f", widened to include {rank}"
    return Choice(
        sorted({*tried, rank}),
        f"ranks to try for a {task} task: {low} to {high}{widened}; loractl train --set"
        " lora.rank=N",
        OURS,
    )


def _choose_targets(task: str) -> Choice:
    known = (
        "adapting every linear layer learns the most, the MLP layers above all, and attention alone"
        " does worse even with as many parameters: choose all-linear unless memory is tight"
    )
    what = {
        "minimal": "q and v: few parameters for a simple task",
        "attention": "q, k, v and o: the usual middle ground",
        "all-linear": "every linear layer: a complex task needs all of them",
    }
    value = TARGETS[task]
    return Choice(value, f"{what[value]}. Published: {known}", f"{OURS}; {QLORA}, 4; {REGRET}")


def usual_rate(hidden: int, architecture: str, method: str) -> float:
    """The peak learning rate for Adam that the rule of COOKBOOK gives a model of this width."""
    times = 1 if method == "full" else 10
    return float(5e-5 * times * (2000 / hidden) ** _power_of(architecture))


def _power_of(architecture: str) -> float:
    return 0.0775 if architecture.startswith("qwen") else 0.781


def _learning_rate(shape: ModelShape, data: Rows | None) -> Choice:
    power = _power_of(shape.architecture)
    rounded = float(f"{usual_rate(shape.hidden, shape.architecture, 'lora'):.2g}")
    return Choice(
        rounded,
        f"5e-5 x 10 x (2000 / {shape.hidden})^{power:g}: about ten times the rate for full"
        f" fine-tuning, which would be {rounded / 10:.2g}; fifteen times for runs of less than"
        " about 100 steps",
        f"{COOKBOOK}; {REGRET}",
    )


def _effective_batch(data: Rows | None) -> Choice:
    value = LARGEST_BATCH if data is None or data.rows >= FEW else LARGEST_BATCH // 2
    few = "; halved for few rows so that an epoch has enough steps" if value < LARGEST_BATCH else ""
    return Choice(
        value,
        f"LoRA falls behind full fine-tuning at large batches: stay below 32 rows per step{few}",
        f"{REGRET}; TRL's recipe for it",
    )  # fmt: skip


def _choose_epochs(data: Rows | None, batch: int) -> Choice:
    if data is None:
        return Choice(1, "the number of rows is unknown; give --data-size or --data", OURS)
    if data.rows < FEW:
        per_epoch = math.ceil(data.rows / batch)  # the last step of an epoch may take fewer rows
        passes = min(MOST_EPOCHS, max(3, math.ceil(ENOUGH_STEPS / per_epoch)))
        are = "row is" if data.rows == 1 else "rows are"
        return Choice(
            passes,
            f"{data.rows:,} {are} few: make several passes, {passes * per_epoch:,} steps in all;"
            " the held-out loss shows when to stop",
            "LIMA, arXiv 2305.11206: 15 passes over 1,000 rows",
        )  # fmt: skip
    value = 2 if data.rows <= MANY else 1
    return Choice(
        value,
        f"{data.rows:,} rows; published: a second pass over 50,000 rows made answers worse",
        "Raschka 2023, Practical Tips for Finetuning LLMs Using LoRA",
    )  # fmt: skip


def _choose_packing(
    shape: ModelShape, data: Rows | None, length: int, epochs: int, batch: int
) -> Choice:
    """`batch`: rows per step."""
    if shape.architecture in UNPACKABLE:
        return Choice(False, f"a packed row of {shape.architecture} would mix its examples", OURS)
    if data is None or data.tokens is None:
        return Choice(True, "the rows were not counted; give --data", "the config's default")
    steps = epochs * math.ceil(data.tokens / length / batch)
    if steps < ENOUGH_STEPS:
        return Choice(
            False,
            f"packed, the rows would make only about {steps:,} steps: too few to learn from",
            OURS,
        )
    return Choice(True, f"no padding is computed, and about {steps:,} steps remain", OURS)


def _max_length(shape: ModelShape, data: Rows | None) -> Choice:
    positions = shape.positions
    if data is None or data.longest is None:
        value = min(1024, positions or 1024)
        return Choice(value, "the rows were not counted; give --data", "the config's default")
    wanted = -(-data.longest // 64) * 64
    if positions is not None and wanted > positions:
        return Choice(
            positions,
            f"the longest row has {data.longest:,} tokens, but the model only {positions:,}"
            " positions: longer rows are dropped (too_long: drop)",
            data.counted,
        )
    return Choice(
        wanted,
        f"the longest row has {data.longest:,} tokens, 99% of rows at most {data.p99:,}; rounded up"
        " to a multiple of 64, so that no row is cut",
        data.counted,
    )


def capacity(shape: ModelShape, request: Request, data: Rows | None) -> Choice | None:
    """How much the rows hold, relative to how much the adapter can hold; both in bits."""
    if data is None or data.tokens is None:
        return None
    ranks = ranks_of(shape, request)
    holds = BITS_A_PARAMETER * counts.trained(shape, ranks)
    asked = BITS_A_TOKEN * data.tokens
    value = asked / holds
    verdict = "enough room" if value <= 1 else "too little room to memorize everything"
    if value > 1:
        needed = next(
            (r for r in (2**n for n in range(17)) if _bits_held(shape, request, r) >= asked), None
        )
        verdict += f"; rank {needed} on these modules would be enough" if needed else ""
    return Choice(
        round(value, 3),
        f"{data.tokens:,} tokens at about {BITS_A_TOKEN} bit each, {holds // 2:,} parameters at"
        f" about {BITS_A_PARAMETER} bits each: {verdict}",
        REGRET,
    )


def _bits_held(shape: ModelShape, request: Request, rank: int) -> int:
    ranks = ranks_of(shape, replace(request, rank=rank))
    return BITS_A_PARAMETER * counts.trained(shape, ranks)
