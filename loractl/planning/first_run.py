"""Settings that train well on given rows with a given model: each with its reason, in one line.

Steps come first: a run needs about 100 optimizer steps to learn a task, whatever its rows are. Few
rows mean small steps and several passes, and no packing, which would hide n examples in a row: 173
tickets in 3 packed steps taught SmolLM2-135M nothing.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loractl.data.survey import Survey
from loractl.errors import DataError
from loractl.models.shape.families import UNPACKABLE
from loractl.planning import recommend
from loractl.planning.first_model import FirstModel, has_gpu
from loractl.planning.recommend import ENOUGH_STEPS, MOST_EPOCHS
from loractl.text import counted

METHODS = ("lora", "dora", "adalora", "full")
HELD_OUT, LEAST_HELD_OUT, MOST_HELD_OUT, LARGEST_HELD_OUT = 0.1, 20, 0.25, 2000
RANKS = {"classification": 8, "continued-pretraining": 32}
RANK = 16
RATES = {"lora": 1.0, "dora": 0.7, "adalora": 3.0, "full": 0.1}
"""Learning rate by method, relative to LoRA's."""
MICRO_BATCH = {"cpu": 2048, "gpu": 8192}
"""Tokens. On two cores, packed micro-batches of 4,096 tokens took 2.19 GiB at 739 tokens/s, of
2,048 1.47 GiB at 738, of 1,024 1.10 GiB at 677."""
POINTS = 8
"""Evaluations during a run: enough for a curve."""
NEARLY = 0.8 * ENOUGH_STEPS


@dataclass(frozen=True)
class Setting:
    """A key of the config, its value and the reason for it."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Steps:
    """How a run's rows become optimizer steps."""

    window: int  # rows per step
    epochs: int
    per_epoch: int

    @property
    def total(self) -> int:
        return self.epochs * self.per_epoch


def settings(model: FirstModel, data: Survey, method: str, shape: str) -> list[Setting]:
    """Every setting of a first run, in the order of a config. Raises DataError if every row is
    longer than the model allows."""
    packing = _packs(model, data, shape)
    length = _length(model, data, packing)
    stay = data if data.format == "text" else data.within(length.value)  # text is cut
    if not stay.rows:
        raise DataError(
            f"{data.path}: all {counted(data.rows, 'row')} are longer than the {length.value:,}"
            f" positions of {model.name}; split the rows, or use a model with more positions"
        )
    share = held_out_share(stay)
    rows = stay.rows - (stay.n_below(share) if share else 0)
    if packing:
        rows = math.ceil(1.02 * stay.tokens * rows / stay.rows / length.value)
    steps = steps_of(rows, stay.rows, shape)
    return [
        Setting("method", method, _SAYS[method]),
        *_adapter(method, shape, steps.total),
        *_data(data, stay, share, length, packing),
        *_train(model, stay, method, shape, steps, packing, length.value),
        Setting("seed", 0, "random seed for the order of the rows, dropout and initial values"),
    ]


def general_settings(model: FirstModel, path: str, method: str, shape: str) -> list[Setting]:
    """Settings for rows that could not be opened."""
    length = min(1024, model.positions or 1024)
    steps = 500
    return [
        Setting("method", method, _SAYS[method]),
        *_adapter(method, shape, steps),
        Setting("data.train", path, "the training data: a file, a directory or a hub id"),
        Setting("data.eval", HELD_OUT, "held-out share of the rows; or a file"),
        Setting("data.max_length", length, "longer rows are an error unless too_long is set"),
        Setting("data.packing", shape == "continued-pretraining", "several examples per row"),
        Setting("train.steps", steps, "or epochs: N")
        if method == "adalora"
        else Setting("train.epochs", 1 if method == "full" else 3, "passes over the data"),
        Setting("train.batch_size", 2, "rows per micro-batch; if memory is short, 1 ..."),
        Setting("train.gradient_accumulation", 4, "... and twice this: the steps stay the same"),
        learning_rate(model, method, shape, steps),
        Setting("train.save_every", 100, "steps between checkpoints, for --resume"),
        Setting("seed", 0, "random seed for the order of the rows, dropout and initial values"),
    ]


_SAYS = {
    "lora": "full would train every weight",
    "dora": "LoRA with one trained length per output; lora would be faster",
    "adalora": "LoRA whose ranks move to where they matter; lora would give all the same",
    "full": "every weight is trained: about 16 bytes of memory each; lora needs far less",
}


def _adapter(method: str, shape: str, steps: int) -> Iterator[Setting]:
    if method == "full":
        return
    rank = RANKS.get(shape, RANK)
    if method != "adalora":
        yield Setting("lora.rank", rank, "r: a higher rank learns more and needs more memory")
        yield Setting("lora.alpha", 2 * rank, "the update is scaled by alpha / rank")
    yield Setting(
        "lora.target_modules", "all-linear", "all linear layers except the output head; or a list"
    )
    if method == "adalora":
        start = 12 if rank <= RANK else 48
        yield Setting("lora.alpha", 2 * start, "the update is scaled by alpha / initial_rank")
        yield Setting("lora.adalora.initial_rank", start, "rank of each module at the start")
        yield Setting(
            "lora.adalora.target_rank", 2 * start // 3, "the average at the end; some get none"
        )
        yield Setting("lora.adalora.warmup_steps", steps // 10, "steps with all ranks")
        yield Setting(
            "lora.adalora.final_steps", steps * 2 // 5, "steps at the end with the chosen ranks"
        )
        yield Setting("lora.adalora.every", max(1, steps // 50), "steps between reallocations")


def held_out_share(data: Survey) -> float | None:
    """The smallest round fraction whose content split holds out the larger of 20 rows and 10 %, at
    most 25 % (and 2,000 rows); None if there are too few rows.

    Copies of a row count once: they are held out together, and tell no more than one of them.
    """
    every, places = sorted(data.places), sorted(set(data.places))
    wanted = max(LEAST_HELD_OUT, math.ceil(HELD_OUT * len(places)))
    wanted = min(wanted, math.floor(MOST_HELD_OUT * len(places)), LARGEST_HELD_OUT)
    most = max(wanted, MOST_HELD_OUT * len(places))
    for n_rows in range(wanted, 0, -1):  # fewer where a row with many copies is among them
        least = places[n_rows - 1]  # the fraction must be above this
        for digits in (2, 3, 4, 6):
            share = math.floor(least * 10**digits + 1) / 10**digits
            different, held = bisect_left(places, share), bisect_left(every, share)
            if share < 1 and different <= min(most, 1.1 * n_rows + 2) and 2 * held <= data.rows:
                return share
    return None  # equal rows that cannot be parted


def _length(model: FirstModel, data: Survey, packing: bool) -> Setting:
    wide = min(1024, model.positions or 1024)
    if packing and data.longest < wide and data.tokens > ENOUGH_STEPS * 4 * wide:
        longest = f"texts are packed into rows of this; the longest has {data.longest:,} tokens"
        return Setting("data.max_length", wide, longest)
    wanted = max(64, -(-data.longest // 32) * 32)
    longest = f"the longest row has {data.longest:,} tokens"
    if data.estimated:
        wanted = -(-int(1.25 * data.longest + 1) // 64) * 64
        longest = f"the longest row has about {data.longest:,} tokens, estimated from its bytes"
    if model.positions is not None and wanted > model.positions:
        over = sum(length > model.positions for length in data.lengths)
        what = f"; {over:,} are longer" if over else ""
        return Setting("data.max_length", model.positions, f"as many as the model has{what}")
    return Setting("data.max_length", wanted, longest)


def _packs(model: FirstModel, data: Survey, shape: str) -> bool:
    """Text is packed; elsewhere only many rows on a GPU, where padding costs time."""
    if model.shape is not None and model.shape.architecture in UNPACKABLE:
        return False
    if shape == "continued-pretraining":
        return True
    return has_gpu() and data.rows >= recommend.MANY and data.longest <= 2048


def _data(
    data: Survey, stay: Survey, share: float | None, length: Setting, packing: bool
) -> Iterator[Setting]:
    """`stay`: the rows that are not left out as too long."""
    yield Setting("data.train", data.path, f"{data.rows:,} rows, {data.format}")
    if data.columns:
        unused = f"; not used: {', '.join(data.unused)}" if data.unused else ""
        yield Setting("data.columns", data.columns, f"our field: your column{unused}")
    yield from (Setting(*one) for one in data.choices)
    if share is not None:
        held, different = stay.n_below(share), stay.n_different_below(share)
        copies = f", {different:,} of them different" if different < held else ""
        why = f"held-out share of the rows: {held:,} of {stay.rows:,}{copies}"
        yield Setting("data.eval", share, why)
    yield length
    over = sum(one > length.value for one in data.lengths)
    if over:
        text = data.format == "text"
        what = "cut" if text else "left out: cut answers would teach it to stop too soon"
        rows = f"{counted(over, 'row')} {'is' if over == 1 else 'are'}"
        yield Setting("data.too_long", "truncate" if text else "drop", f"{rows} {what}")
    why = (
        "several texts per row, none of which sees another"
        if packing
        else "one row per example: packed rows would mean fewer, larger steps"
    )
    yield Setting("data.packing", packing, why)


def steps_of(rows: int, examples: int, shape: str) -> Steps:
    """The largest steps that still make about 100 of them in the usual number of passes; else more
    passes. `rows` are those trained on, packed if they are packed. Most of a row with tools is read
    and not trained: there small steps come before passes."""
    passes = 3 if examples < recommend.FEW else 2 if examples <= recommend.MANY else 1
    passes = min(passes, {"continued-pretraining": 2, "tool-calls": 1}.get(shape, 3))
    least = 2 if shape == "tool-calls" else 4
    for window in (16, 8, 4, 2)[rows < recommend.FEW :]:
        per_epoch = math.ceil(rows / window)
        if window >= least and passes * per_epoch >= (ENOUGH_STEPS if least > 2 else NEARLY):
            return Steps(window, passes, per_epoch)
    for window in (4, 2, 1):
        per_epoch = math.ceil(rows / window)
        found = Steps(window, min(MOST_EPOCHS, math.ceil(ENOUGH_STEPS / per_epoch)), per_epoch)
        if found.total >= ENOUGH_STEPS:
            break
    return found


def _train(
    model: FirstModel,
    data: Survey,
    method: str,
    shape: str,
    steps: Steps,
    packing: bool,
    length: int,
) -> Iterator[Setting]:
    few = (
        f": more than {MOST_EPOCHS} passes would memorize rows"
        if steps.total < ENOUGH_STEPS and steps.epochs == MOST_EPOCHS
        else ""
    )
    what = f"{steps.per_epoch:,} steps each, about {steps.total:,} in all{few}"
    if method == "adalora":  # whose phases are counted in steps
        yield Setting("train.steps", steps.total, f"about {steps.epochs} passes over the data{few}")
    else:
        yield Setting("train.epochs", steps.epochs, f"passes over the data: {what}")
    batch = _micro_batch(data, steps.window, packing, length)
    tokens = length if packing else data.tokens / data.rows
    yield Setting(
        "train.batch_size", batch, f"rows per micro-batch, about {round(batch * tokens):,} tokens"
    )
    yield Setting(
        "train.gradient_accumulation",
        steps.window // batch,
        f"micro-batches per step; a step takes {counted(steps.window, 'row')}",
    )
    yield learning_rate(model, method, shape, steps.total)
    if data.rows > 3 and held_out_share(data) is not None:
        every = max(1, math.ceil(steps.total / POINTS))
        yield Setting("train.eval_every", every, "steps between evaluations of the held-out rows")
    else:
        every = max(1, steps.total // 2)
    yield Setting(
        "train.save_every", min(100, 2 * every), "steps between checkpoints, for --resume"
    )


def _micro_batch(data: Survey, window: int, packing: bool, length: int) -> int:
    """Rows per micro-batch: the most that keep the longest ones within its tokens."""
    most = MICRO_BATCH["gpu" if has_gpu() else "cpu"]
    for rows in (window, window // 2, window // 4, window // 8):
        tokens = rows * length if packing else sum(data.lengths[-rows:]) if rows else 0
        if rows and tokens <= most:
            return rows
    return 1


def learning_rate(model: FirstModel, method: str, shape: str, steps: int) -> Setting:
    """The rate for LoRA at this width, scaled for the method and for short runs."""
    if model.shape is None:
        rate, why = 3e-4, "the peak; for a model of a few billion weights, more for smaller ones"
    else:
        rate = recommend.usual_rate(model.shape.hidden, model.shape.architecture, "lora")
        why = f"the peak; by the rule for a model {model.shape.hidden:,} wide"
    rate *= RATES[method]
    if shape == "continued-pretraining":
        rate *= 0.5
        why += ", half of it for text"
    if method != "lora":
        why += f", times {RATES[method]:g} for {method}"
    if steps < NEARLY:
        rate *= 1.5
        why += ", times 1.5 for few steps"
    return Setting("train.learning_rate", float(f"{rate:.2g}"), why)
