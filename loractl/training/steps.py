"""The training loop as a generator: one optimizer step per yield. The caller logs and saves."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from loractl.errors import NumericError
from loractl.lora.dynamic import count_versions_
from loractl.records import Batch, DataState
from loractl.training.distributed import sum_gradients_, sum_over_ranks
from loractl.training.optim import LearningRate, set_rate_
from loractl.training.state import TrainState, seed_of_step
from loractl.world import ALONE, World


class Loss(Protocol):
    """A sum over a batch, and the count by which a step divides the sums of all its batches:
    trained tokens, weights or pairs. Only the loss knows what it counts."""

    def count(self, batch: Batch) -> float:
        """The count of a batch, before its sum is computed."""

    def groups(self, window: Sequence[Batch]) -> Sequence[Sequence[Batch]]:
        """The batches of a step, in groups that one backward pass serves."""

    def sums(self, group: Sequence[Batch]) -> Sequence[Tensor]:
        """The sum of each batch of a group, on the model's device."""

    def of_rows(self, batch: Batch) -> Sequence[tuple[float, float]]:
        """(sum, count) of each row of a batch, without gradients."""


LOWEST_LOSS_SCALE = 1.0


class RankPolicy(Protocol):
    """What changes ranks during a run, and adds to the loss."""

    @property
    def settled(self) -> int:
        """The step after which no rank changes any more."""

    def penalty(self) -> Tensor | None:
        """A scalar that is added to the mean loss of a step once."""

    def after_update(self, step: int) -> None:
        """Called when step `step`, counted from 1, has been applied; its gradients still exist."""

    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors to keep in a checkpoint."""

    def restore_(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step did."""

    step: int  # counted from 1
    epoch: float
    loss: float  # mean over the window's trained tokens, by weight, in nats
    lr: float  # of A; with LoRA+ the rate of B is higher
    grad_norm: float  # before clipping
    tokens: int  # real tokens of the step, over all processes
    trained_tokens: int
    seconds: float
    skipped: str = ""  # why it left the weights unchanged, if it did


@dataclass(frozen=True)
class Recipe:
    """What stays the same from step to step."""

    learning_rate: LearningRate
    max_grad_norm: float
    seed: int
    device: torch.device
    scaler: torch.amp.GradScaler  # disabled unless the base computes in fp16
    non_finite_limit: int = 1  # non-finite steps in a row after which training stops
    ranks: RankPolicy | None = None
    world: World = ALONE


class _NotFinite(NumericError):
    """The loss or the gradients of a step are not finite; the weights are still unchanged."""

    def __init__(self, what: str, where: str, loss: float) -> None:
        super().__init__(what, where)
        self.what, self.where, self.loss = what, where, loss


def steps(
    loss: Loss,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    windows: Iterable[tuple[list[Batch], DataState]],
    state: TrainState,
    recipe: Recipe,
) -> Iterator[Step]:
    """Train until `recipe.learning_rate.total` steps are done; `state` is updated before each
    yield.

    The loss of a window is the sum over all its trained tokens divided once by their number, or
    their weight, so a window gives the same step however it is split into micro-batches. A step
    whose loss or gradient is not finite changes no weights: it is skipped, or at the limit of
    `recipe` raises NumericError with the step and the rows.
    """
    total = recipe.learning_rate.total
    for window, after in windows:
        if state.step >= total:
            return
        began = time.perf_counter()
        lr = recipe.learning_rate.at(state.step)
        set_rate_(optimizer, lr)
        # Dropout depends only on (seed, step): a resumed run draws what the uninterrupted one
        # would have drawn.
        torch.manual_seed(seed_of_step(recipe.seed, state.step))
        count, tokens, trained = _add_up(loss, window, recipe.world)
        mean = norm = math.nan
        skipped = ""
        try:
            sums = _add_gradients(loss, parameters, window, count, recipe)
            if state.step == state.skipped:  # the first one taken
                _check_reached(parameters)
            recipe.scaler.unscale_(optimizer)
            clipped = nn.utils.clip_grad_norm_(parameters.values(), recipe.max_grad_norm)
            own, norm = _read(sums, clipped)
            mean = sum_over_ranks(recipe.world, [own])[0] / count
            _require_finite(mean, norm, sums, window, recipe)
            _update(parameters, optimizer, recipe.scaler)
            state.skipped_in_row = 0
        except _NotFinite as fault:
            state.skipped_in_row += 1
            if state.skipped_in_row >= recipe.non_finite_limit:
                raise _explain_stop(fault, state, recipe) from None
            state.skipped += 1
            norm = math.nan
            mean, skipped = fault.loss, f"{fault.what}, in {fault.where}"
        if not math.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)  # the step was not taken; in fp16 too
        # Also after a skipped step: a schedule goes on, and there are no gradients to learn from.
        if recipe.ranks is not None:
            recipe.ranks.after_update(state.step + 1)
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.data = after
        state.tokens += tokens
        state.trained_tokens += trained
        state.loss_scale = dict(recipe.scaler.state_dict())
        seconds = time.perf_counter() - began
        yield Step(state.step, after.epochs, mean, lr, norm, tokens, trained, seconds, skipped)


def _add_up(loss: Loss, window: list[Batch], world: World) -> tuple[float, int, int]:
    """A step's loss count, real tokens and trained tokens, over all processes."""
    of_loss = sum(loss.count(batch) for batch in window)
    tokens = sum(batch.n_tokens for batch in window)
    trained = sum(batch.n_trained for batch in window)
    count, all_tokens, all_trained = sum_over_ranks(world, [of_loss, tokens, trained])
    assert count > 0, (count, all_trained)  # rows without trained tokens were left out
    return count, int(all_tokens), int(all_trained)


def _add_gradients(
    loss: Loss,
    parameters: Mapping[str, nn.Parameter],
    window: list[Batch],
    count: float,
    recipe: Recipe,
) -> list[Tensor]:
    """Accumulate the gradients of a step's mean loss and of the penalty; return the loss sum of
    each batch, without the penalty.

    `count` is that of the whole step; each sum is divided by it once.
    """
    sums: list[Tensor] = []
    for group in loss.groups(window):
        found = loss.sums([batch.to(recipe.device) for batch in group])
        torch.autograd.backward([recipe.scaler.scale(one / count) for one in found])
        sums += [one.detach() for one in found]
    sum_gradients_(recipe.world, parameters.values())
    penalty = recipe.ranks.penalty() if recipe.ranks is not None else None
    if penalty is not None:
        recipe.scaler.scale(penalty).backward()  # type: ignore[no-untyped-call]
    return sums


def _read(sums: Sequence[Tensor], norm: Tensor) -> tuple[float, float]:
    """The sum of the losses and the gradients' norm: the only time that a step waits for its
    device. A process may have no rows left, and then no sums."""
    if not sums:
        return 0.0, float(norm)
    total, found = torch.stack([torch.stack(list(sums)).sum(), norm.to(sums[0])]).tolist()
    return total, found


def _require_finite(
    mean: float, norm: float, sums: Sequence[Tensor], window: list[Batch], recipe: Recipe
) -> None:
    """Raise _NotFinite for a loss or a norm that is not, unless a lower scale may cure it: in fp16
    a gradient beyond the format's range is no reason to stop."""
    scaler = recipe.scaler
    if math.isfinite(mean) and (math.isfinite(norm) or _may_lower(scaler)):
        return
    if scaler.is_enabled():
        scaler.update()  # required after each unscale_
    if not math.isfinite(mean):
        pairs = zip(window, sums, strict=True)
        bad = [batch for batch, one in pairs if not torch.isfinite(one)] or window
        where = f"the batch of {_name_rows(bad[0])}" if bad else "rows of another process"
        raise _NotFinite(f"loss is {mean}", where, mean)
    lines = ", ".join(_name_rows(batch) for batch in window[:4])
    raise _NotFinite(f"gradient norm is {norm}", lines, mean)


def _update(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Apply the gradients; where they are not finite, the scaler leaves the weights unchanged."""
    scaler.step(optimizer)
    count_versions_(parameters.values())
    scaler.update()


def _may_lower(scaler: torch.amp.GradScaler) -> bool:
    return scaler.is_enabled() and scaler.get_scale() > LOWEST_LOSS_SCALE


def _check_reached(parameters: Mapping[str, nn.Parameter]) -> None:
    lost = [name for name, parameter in parameters.items() if parameter.grad is None]
    if lost:
        raise NumericError(
            f"step 1: {len(lost)} of {len(parameters)} trained tensors got no gradient, the"
            f" first: {lost[0]}; the model does not use them"
        )


def _name_rows(batch: Batch) -> str:
    shown = ", ".join(str(line) for line in batch.lines[:8])
    return f"rows {shown}{', ...' if len(batch.lines) > 8 else ''}"


def _explain_stop(fault: _NotFinite, state: TrainState, recipe: Recipe) -> NumericError:
    row = f" (not finite in {recipe.non_finite_limit} steps in a row)"
    return NumericError(
        f"step {state.step + 1}: {fault.what}, in {fault.where}"
        f"{row if recipe.non_finite_limit > 1 else ''}; the weights are those of the last step"
        f" taken; try a learning_rate below {recipe.learning_rate.peak:g}"
    )
