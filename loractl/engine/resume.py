"""How a resumed run returns to its newest valid checkpoint, and when it may not."""

import torch

from loractl import console
from loractl.artifacts.peft import adalora_files, attach
from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.run import checkpoint, metrics
from loractl.artifacts.run.directory import RunDir, Status
from loractl.config import loader
from loractl.config.optimizers import OPTIMIZERS
from loractl.engine.session import Session
from loractl.engine.trained import MODEL
from loractl.errors import StateError
from loractl.training.optim import restore_state_
from loractl.training.state import TrainState
from loractl.training.steps import RankPolicy


def inputs(session: Session) -> dict[str, str]:
    """Hashes of the inputs of a run; resuming with different ones is refused.

    Tokenizer and chat template count through the tokens that they make of the rows.
    """
    data = {f"data.{name}": account.sha256 for name, account in session.data.accounts.items()}
    start = {"lora.start_from": session.start.sha256} if session.start else {}
    return {
        "model.name_or_path": session.base_fingerprint,
        **start,
        **data,
        "tokens of the rows": session.data.tokens_sha256,
    }


def never_saved(directory: RunDir) -> bool:
    """Whether a run was killed before its first checkpoint: then it starts over, losing little.

    A run that got past its first checkpoint has lost its checkpoints; it must not silently start
    over from the first step.
    """
    if checkpoint.published(directory.checkpoints) or directory.status() is Status.FINISHED:
        return False
    if directory.status() is not Status.ABSENT:
        planned = loader.load(directory.config, paths_exist=False).config
        done = max((row["step"] for row in metrics.read(directory.metrics)), default=0)
        if done > planned.train.save_every:
            return False
    console.note(
        f"{directory.path}: stopped before its first checkpoint; starting from the first step"
    )
    return True


def restore_(
    session: Session,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    directory: RunDir,
    ranks: RankPolicy | None = None,
) -> TrainState:
    """Restore model and optimizer from the newest valid checkpoint. Raises StateError."""
    found, wrong = checkpoint.newest_valid(directory.checkpoints)
    for line in wrong:
        console.note(f"note: skipped a damaged checkpoint: {line}")
    plain = found.state
    old, new = plain["inputs"], inputs(session)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        raise StateError(
            *[
                f"{directory.path}: {key}: the content changed since the run started: sha256"
                f" {_shorten_hash(old.get(key))} -> {_shorten_hash(new.get(key))}; restore it, or"
                " start over with --overwrite"
                for key in changed
            ]
        )
    state = TrainState.restored(plain["train"])
    if state.step > session.total_steps:
        raise StateError(
            f"{directory.path}: {state.step} steps are already done, more than the"
            f" {session.total_steps} of this config; train for longer"
        )
    restore_weights_(session, found)
    if ranks is not None and (found.directory / adalora_files.STATE).is_file():
        ranks.restore_(found.tensors(adalora_files.STATE))
    kind = OPTIMIZERS[session.config.train.optimizer]
    restore_state_(optimizer, session.parameters, found.optimizer, kind)
    if state.loss_scale:
        scaler.load_state_dict(state.loss_scale)
    console.note(f"resuming after step {state.step} from {found.directory}")
    return state


def restore_weights_(session: Session, found: checkpoint.Checkpoint) -> None:
    """Give the trained parameters the values of a checkpoint."""
    if session.layers:
        attach.restore_(session.layers, found.tensors(adapters.WEIGHTS), session.whole)
        return
    tensors = found.tensors(MODEL)
    with torch.no_grad():
        for name, parameter in session.parameters.items():
            parameter.copy_(tensors[name])


def _shorten_hash(sha256: str | None) -> str:
    return sha256[:12] if sha256 else "none"
