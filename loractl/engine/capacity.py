"""Room for a run, on disk and in memory: what it needs, what is available, what to change."""

import contextlib
from collections.abc import Iterator

from loractl import console, text
from loractl.artifacts import files
from loractl.artifacts.peft.names import checkpoint_tensors
from loractl.artifacts.run.directory import RunDir
from loractl.config.optimizers import OPTIMIZERS
from loractl.engine.memory import Size, beside_the_weights, recomputes
from loractl.engine.session import Session
from loractl.errors import ConfigError, is_out_of_memory
from loractl.training.state import TrainState

BESIDE = 64 << 10
"""Bytes for a checkpoint's JSON files and headers, and for partly filled disk blocks."""


def of_checkpoint(session: Session) -> int:
    """Bytes of a checkpoint: the tensors written for model and optimizer."""
    kind = OPTIMIZERS[session.config.train.optimizer]
    shapes = (tuple(parameter.shape) for parameter in session.parameters.values())
    return sum(kind.size(shape) for shape in shapes) + of_weights(session)


def of_weights(session: Session) -> int:
    """Bytes of a checkpoint without the state of the optimizer."""
    trained = sum(parameter.numel() for parameter in session.parameters.values())
    written = sum(
        tensor.numel() for tensor in checkpoint_tensors(session.layers, session.whole).values()
    )
    tokenizer = session.source.directory / "tokenizer.json"
    copied = session.new_tokens.ids and tokenizer.is_file()  # saved with its new tokens
    return 4 * (written or trained) + BESIDE + (tokenizer.stat().st_size if copied else 0)


def require(session: Session, directory: RunDir, state: TrainState) -> None:
    """Raise StorageError if not one checkpoint fits on disk; note if the whole run does not fit."""
    train, one = session.config.train, of_checkpoint(session)
    if state.step >= session.total_steps:
        return
    files.require_space(directory.checkpoints, one)
    saves = -(-(session.total_steps - state.step) // train.save_every)
    kept = min(saves, train.keep_checkpoints + 1)  # one extra while the newest is written
    left, needed = files.free_bytes(directory.path), one * kept
    if left < needed:
        console.note(
            f"note: {directory.path}: {kept} checkpoints of {text.size(one)} each do not fit in the"
            f" free space of {text.size(left)}"
        )


@contextlib.contextmanager
def shortage_explained(session: Session) -> Iterator[None]:
    """Turn an out-of-memory failure in a step into a ConfigError that says what to set instead."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
        raise ConfigError(f"{_name_remedy(session)} (out of memory: {first[:200]})") from None


def _name_remedy(session: Session) -> str:
    config, model, length = session.config, session.model, session.plan.max_length
    rows, windows = config.train.batch_size, config.train.gradient_accumulation

    def taken(rows: int, checkpointing: bool | None = None) -> str:
        size, fast = Size(rows, length), session.is_fast
        return text.size(
            beside_the_weights(model, config, size, fast=fast, checkpointing=checkpointing)
        )

    asked = f"a step on {rows} rows of {length} tokens needs about {taken(rows)}"
    if rows > 1:
        fewer = next(n for n in range(rows // 2, 0, -1) if rows % n == 0)
        return (
            f"train.batch_size: {asked}, more than is available; set it to {fewer} and"
            f" train.gradient_accumulation to {windows * rows // fewer} for the same steps in about"
            f" {taken(fewer)}"
        )
    if not recomputes(model):
        return (
            f"train.gradient_checkpointing: {asked}, more than is available; set it to true, which"
            f" needs about {taken(rows, True)} and makes the backward pass a third longer"
        )
    return (
        f"data.max_length: a row of {length} tokens needs more than is available; set it to"
        f" {length // 2}, which needs half, or use a smaller base model or model.dtype"
    )
