"""What `check` reports on model and settings, and on the one step that it takes."""

from collections.abc import Iterator

from loractl import text
from loractl.engine.check.step import StepReport
from loractl.engine.prospects import fix, note, ok
from loractl.engine.session import Session
from loractl.engine.summary import describe_packed
from loractl.models import load
from loractl.models.device import free_memory
from loractl.quant.linear import packed_layers
from loractl.reports.findings import Finding


def model_findings(session: Session) -> Iterator[Finding]:
    """Inspect the adapted modules and the vocabulary."""
    yield from _quantized(session)
    yield from _adapted(session)
    yield _vocabulary(session)
    if session.config.model.trust_remote_code:
        yield note(
            "remote code", "model.trust_remote_code runs Python code from the base's directory"
        )


def _adapted(session: Session) -> Iterator[Finding]:
    if not session.layers:
        yield ok("weights", f"all {len(session.parameters)} tensors are trained (method: full)")
        return
    counts: dict[tuple[str, int], int] = {}
    for name, layer in session.layers.items():
        key = (name.rpartition(".")[2], layer.rank)
        counts[key] = counts.get(key, 0) + 1
    listed = ", ".join(f"{name} x{count} (rank {rank})" for (name, rank), count in counts.items())
    yield ok("adapters", f"every entry of lora.target_modules matches: {listed}")
    if session.dtype != next(session.model.parameters()).dtype:
        return
    head = load.head_name(session.model)
    tied = bool(getattr(session.model.config.get_text_config(), "tie_word_embeddings", False))
    adapted = {name.rpartition(".")[2] for name in session.layers}
    if tied and head is not None and head.rpartition(".")[2] in adapted:
        yield note(
            "tied head",
            "the output head shares its weight with the embedding: merge writes them separately;"
            " most other tools merge such an adapter incorrectly",
        )


def _quantized(session: Session) -> Iterator[Finding]:
    packed = [layer.packed for layer in packed_layers(session.model).values()]
    if packed:
        yield ok("quantization", describe_packed(packed))


def _vocabulary(session: Session) -> Finding:
    rows = session.model.config.get_text_config().vocab_size
    tokens = len(session.tokenizer)
    if tokens > rows:
        return fix(
            "vocabulary",
            f"the tokenizer has {tokens:,} tokens, the model only {rows:,} embeddings: added tokens"
            " have none; list them in model.add_tokens, or use the base's own tokenizer",
        )
    return ok("vocabulary", f"{tokens:,} tokens, {rows:,} embeddings")


def step_findings(session: Session, step: StepReport) -> Iterator[Finding]:
    """What the step showed: gradients everywhere, saved files that read back, memory."""
    if step.still:
        yield fix(
            "gradients",
            f"the step did not change {step.still} adapters or trained tensors: they get no"
            " gradient; leave their modules out of lora.target_modules",
        )
    else:
        yield ok("gradients", "the step changed every adapter")
    yield ok("saving", "the saved tensors read back bit for bit")
    free = free_memory(session.device)
    if step.peak_bytes > 0.9 * (free + step.peak_bytes):
        yield note(
            "memory",
            f"peak {text.size(step.peak_bytes)}, {text.size(free)} left: halve train.batch_size and"
            " double train.gradient_accumulation, which gives the same steps",
        )
    else:
        peak, left = text.size(step.peak_bytes), text.size(free)
        yield ok("memory", f"peak {peak} on the heaviest batch, {left} left")
