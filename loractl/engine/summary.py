"""What a run prints before its first step and after its last."""

from collections.abc import Sequence
from pathlib import Path

from loractl import console, text
from loractl.engine.session import Session
from loractl.models.torch_dtypes import dtype_word


def introduce(session: Session) -> None:
    """Print what is about to be trained, and on what."""
    trained = sum(parameter.numel() for parameter in session.parameters.values())
    in_all = sum(parameter.numel() for parameter in session.model.parameters())
    read = session.data.of_train()
    dtype = dtype_word(session.dtype)
    console.note(f"model    {session.source.name} on {session.device.type}, {dtype}")
    if session.layers:
        console.note(
            f"adapter  {trained:,} trained parameters ({trained / (in_all - trained):.2%} of the"
            f" base) in {len(session.layers)} layers: {_kinds_of_layers(session)}"
        )
    else:
        console.note(f"weights  all {trained:,} parameters are trained")
    if session.layers:
        console.note(f"layers   {_describe_kernels(session)}")
    console.note(
        f"data     {sum(one.examples for one in read):,} examples,"
        f" {sum(one.tokens for one in read):,} tokens,"
        f" {sum(one.trained_tokens for one in read):,} of them trained;"
        f" {session.total_steps:,} steps"
    )


def _describe_kernels(session: Session) -> str:
    if session.trunk is None:
        return f"those of transformers (train.kernels: {session.config.train.kernels})"
    why = session.trunk.fallback_reason
    return f"those of transformers ({why})" if why else "loractl's own"


def _kinds_of_layers(session: Session) -> str:
    counts: dict[str, int] = {}
    for name in session.layers:
        last = name.rpartition(".")[2]
        counts[last] = counts.get(last, 0) + 1
    return ", ".join(f"{name} x{count}" for name, count in counts.items())


def conclude(
    session: Session,
    final: Path,
    losses: Sequence[float],
    eval_losses: Sequence[float],
    seconds: float,
) -> None:
    """Print the result of the run, and what to do with it next."""
    if losses:
        console.note(f"done in {text.duration(seconds)}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    if len(eval_losses) > 1:
        console.note(f"held-out loss {eval_losses[0]:.4f} -> {eval_losses[-1]:.4f}")
    console.note(f"wrote {final}")
    if session.config.method == "full":
        console.note(f"try it: loractl generate --model {final} --prompt TEXT")
    else:
        console.note(f"try it: loractl generate --adapter tuned={final} --prompt TEXT")
        console.note(f"merge it: loractl merge {final} --out DIR")
