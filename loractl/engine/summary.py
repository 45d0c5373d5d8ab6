"""What a run prints before its first step and after its last."""

from collections.abc import Iterator, Sequence
from itertools import islice

from loractl import console, text
from loractl.engine.prospects import FEW_STEPS, prospects
from loractl.engine.publish import Published
from loractl.engine.same_prompt import first_conversations, same_at_generation
from loractl.engine.session import Session
from loractl.evaluation.loss import is_below
from loractl.models.torch_dtypes import dtype_word
from loractl.ops.packed import Packed
from loractl.quant.kinds import kind_of
from loractl.quant.linear import n_bytes, packed_layers
from loractl.records import HeldOutLoss

FEW_ROWS = 8
"""Of each source, whose prompts are compared: most templates treat all rows alike."""


def introduce(session: Session) -> None:
    """Print what is about to be trained, on what, and what may keep it from learning."""
    trained = sum(parameter.numel() for parameter in session.parameters.values())
    packed = [layer.packed for layer in packed_layers(session.model).values()]
    in_all = sum(parameter.numel() for parameter in session.model.parameters())
    in_all += sum(one.numel() for one in packed)
    read = session.data.of_train()
    dtype = dtype_word(session.dtype)
    console.note(f"model    {session.source.name} on {session.device.type}, {dtype}")
    if packed:
        console.note(f"base     {describe_packed(packed)}")
    if session.layers:
        console.note(
            f"adapter  {trained:,} trained parameters ({trained / (in_all - trained):.2%} of the"
            f" base) in {len(session.layers)} layers: {_kinds_of_layers(session)}"
        )
    else:
        console.note(f"weights  all {trained:,} parameters are trained")
    if session.layers:
        console.note(f"layers   {describe_kernels(session)}")
    console.note(
        f"data     {sum(one.examples for one in read):,} examples,"
        f" {sum(one.tokens for one in read):,} tokens,"
        f" {sum(one.trained_tokens for one in read):,} of them trained;"
        f" {text.counted(session.total_steps, 'step')}"
    )
    rows = first_conversations(session, FEW_ROWS)
    for finding in (*prospects(session), same_at_generation(session, rows)):
        if finding.state != "ok":
            console.note(f"note: {finding.text}")


def describe_packed(packed: Sequence[Packed]) -> str:
    """How much of a base is packed, and what it takes."""
    kinds = " and ".join(sorted({kind_of(one) for one in packed}))
    values, size = sum(one.numel() for one in packed), sum(n_bytes(one) for one in packed)
    return (
        f"{len(packed)} linear layers in {kinds}: {values:,} parameters in {text.size(size)}"
        f" ({8 * size / values:.3g} bits each)"
    )


def describe_kernels(session: Session) -> str:
    """Which code runs the layers."""
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
    session: Session, published: Published, losses: Sequence[float], seconds: float
) -> None:
    """Print the result of the run, and what to do with it next."""
    if losses:
        console.note(f"done in {text.duration(seconds)}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    for line in _held_out_lines(session, published):
        console.note(line)
    final = published.path
    console.note(f"wrote {final}")
    if session.config.method == "full":
        console.note(f"try it: loractl generate --model {final} --prompt TEXT")
    else:
        console.note(f"try it: loractl generate --adapter tuned={final} --prompt TEXT")
        console.note(f"merge it: loractl merge {final} --out DIR")


def _held_out_lines(session: Session, published: Published) -> Iterator[str]:
    base, loss, last = published.base_loss, published.loss, published.last_loss
    if loss is None:
        return
    if base is not None:
        yield f"held-out loss {base.mean:.4f} -> {loss.mean:.4f}"
    if published.step != published.last_step and last is not None:
        yield (
            f"published the weights of step {published.step}, whose held-out loss is the lowest;"
            f" after the last step, {published.last_step}, it was {last.mean:.4f}"
            " (train.keep: last publishes those)"
        )
    if base is not None and not is_below(loss, base):
        causes = " or ".join(islice(_causes_of_nothing(session, base, loss, published), 2))
        yield (
            "learned nothing: the held-out loss is no lower than before training, within its"
            f" error; likely causes: {causes}"
        )


def _causes_of_nothing(
    session: Session, base: HeldOutLoss, loss: HeldOutLoss, published: Published
) -> Iterator[str]:
    """Why a run may have learned nothing, likeliest first, each with the setting to change."""
    train = session.config.train
    if published.last_step < session.total_steps:
        yield (
            f"train.early_stopping: {train.early_stopping} ended the run after step"
            f" {published.last_step} of {session.total_steps} (raise it)"
        )
    elif published.last_step < FEW_STEPS:
        steps = text.counted(published.last_step, "optimizer step")
        yield f"only {steps} (raise train.epochs or train.steps)"
    worst = published.last_loss or loss
    rate = train.learning_rate
    if worst.mean > base.mean:
        yield f"train.learning_rate {rate:g} is too high (try {rate / 5:.1g})"
    else:
        cure = f" (try {rate * 5:.1g})" if rate else ""
        yield f"train.learning_rate {rate:g} is too low{cure}"
    yield "the held-out rows differ in kind from the training rows (data.eval)"
