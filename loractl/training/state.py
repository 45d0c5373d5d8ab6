"""The state of a run besides its tensors: plain numbers that a checkpoint keeps as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from loractl.records import DataState, HeldOutLoss


def seed_of_step(seed: int, step: int) -> int:
    """The seed for random draws in a step, from (seed, step) alone: a resumed run draws what the
    uninterrupted one would have drawn."""
    return (seed * 1_000_003 + step) % 2**63


@dataclass
class TrainState:
    """The state of a run after `step` optimizer steps. Dropout is keyed by (seed, step)."""

    step: int = 0
    data: DataState = field(default_factory=lambda: DataState(0, 0))
    tokens: int = 0  # real tokens seen
    trained_tokens: int = 0
    best_eval_loss: float | None = None  # of all evaluations, that before step 1 included
    evals_without_better: int = 0
    base_loss: HeldOutLoss | None = None  # before step 1
    last_loss: HeldOutLoss | None = None
    best_loss: HeldOutLoss | None = None  # of the best weights to publish so far
    best_step: int | None = None
    eval_pending: bool = False  # a signal interrupted the evaluation at `step`, which is still due
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_row: int = 0  # of those, the ones since the last step taken
    loss_scale: dict[str, float] = field(default_factory=dict)  # of fp16

    def snapshot(self) -> dict[str, Any]:
        """The state as plain data."""
        return asdict(self)

    @classmethod
    def restored(cls, plain: dict[str, Any]) -> "TrainState":
        """The state that `snapshot` returned. Raises KeyError or TypeError for anything else."""
        losses = {
            key: HeldOutLoss(**plain[key])
            for key in ("base_loss", "last_loss", "best_loss")
            if plain.get(key)
        }
        return cls(**{**plain, **losses, "data": DataState(**plain["data"])})

    def note_eval(self, loss: HeldOutLoss, *, is_candidate: bool = True) -> bool:
        """Remember an evaluation, for early stopping; whether these are the best weights so far.

        `is_candidate`: whether the weights could be published as they are. Those before step 1
        never are.
        """
        mean, self.last_loss = loss.mean, loss
        if self.best_eval_loss is None or mean < self.best_eval_loss:
            self.best_eval_loss, self.evals_without_better = mean, 0
        else:
            self.evals_without_better += 1
        if self.step == 0:
            self.base_loss = loss
            return False
        if not is_candidate or (self.best_loss and mean >= self.best_loss.mean):
            return False
        self.best_loss, self.best_step = loss, self.step
        return True
