"""What a run publishes at its end: the last weights, or those with the lowest held-out loss."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loractl import console
from loractl.artifacts import files
from loractl.artifacts.model import merge as merged
from loractl.artifacts.run import checkpoint
from loractl.artifacts.run.directory import RunDir
from loractl.engine.resume import restore_weights_
from loractl.engine.session import Session
from loractl.engine.trained import write_final
from loractl.records import HeldOutLoss
from loractl.training.state import TrainState


@dataclass(frozen=True)
class Published:
    """What was published, and how it did on the held-out rows, if there are any."""

    path: Path
    step: int
    last_step: int
    base_loss: HeldOutLoss | None  # before training
    loss: HeldOutLoss | None  # of the published weights
    last_loss: HeldOutLoss | None


def publish_(session: Session, directory: RunDir, state: TrainState) -> Published:
    """Write the final adapter, or for method: full the complete model.

    The weights in memory become those that are published. Raises StorageError.
    """
    chosen = _take_best_(session, directory, state)
    final = directory.adapter if session.layers else directory.model
    if session.world.is_first:
        _write(session, final, chosen)
    return Published(
        path=final,
        step=chosen.step,
        last_step=state.step,
        base_loss=state.base_loss,
        loss=state.last_loss if chosen.step == state.step else chosen.last_loss,
        last_loss=state.last_loss,
    )


def _take_best_(session: Session, directory: RunDir, state: TrainState) -> TrainState:
    """Restore the best weights where they are to be published, and return their state.

    The last ones are kept if no evaluation beat the loss before training: nothing was learned
    then, and fewer steps are no better.
    """
    best, base = state.best_loss, state.base_loss
    if session.config.train.keep != "best" or best is None or state.best_step == state.step:
        return state
    if base is not None and best.mean >= base.mean:
        return state
    found, wrong = checkpoint.best(directory.checkpoints)
    if found is None:
        why = wrong[0] if wrong else f"{directory.checkpoints / checkpoint.BEST}: not found"
        console.note(f"note: the best weights are lost, so the last are published: {why}")
        return state
    restore_weights_(session, found)
    return TrainState.restored(found.state["train"])


def _write(session: Session, final: Path, state: TrainState) -> None:
    if session.layers:
        files.publish(final, lambda path: write_final(session, path, state))
        return
    about: dict[str, Any] = {**session.about(), "step": state.step}
    files.publish(
        final,
        lambda path: merged.write_model_(
            path,
            session.model,
            session.tokenizer,
            dtype=session.dtype,
            about=about,
            ends=session.ends,
        ),
    )
