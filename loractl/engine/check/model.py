"""What `check` says of model and settings, and of the one step it took."""

from collections.abc import Iterator

from loractl import text
from loractl.engine.check.data import fix, note, ok
from loractl.engine.check.step import StepReport
from loractl.engine.session import Session
from loractl.models import load
from loractl.models.device import free_memory
from loractl.reports.findings import Finding


def model_findings(session: Session) -> Iterator[Finding]:
    """Look at what is adapted, at the vocabulary and at the learning rate."""
    yield from _adapted(session)
    yield _vocabulary(session)
    yield _learning_rate(session)
    if session.config.model.trust_remote_code:
        yield note(
            "remote code", "model.trust_remote_code runs Python code of the base's directory"
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
            "the head shares its weight with the embedding: merge writes them apart; most other"
            " tools merge such an adapter wrong",
        )


def _vocabulary(session: Session) -> Finding:
    rows = session.model.config.get_text_config().vocab_size
    tokens = len(session.tokenizer)
    if tokens > rows:
        return fix(
            "vocabulary",
            f"the tokenizer has {tokens:,} tokens, the model {rows:,}: added tokens have no"
            " embedding; use the tokenizer of the base",
        )
    return ok("vocabulary", f"{tokens:,} tokens, {rows:,} embeddings")


def _learning_rate(session: Session) -> Finding:
    rate, full = session.config.train.learning_rate, session.config.method == "full"
    low, high = (1e-6, 1e-4) if full else (2e-5, 5e-3)
    if low <= rate <= high:
        return ok("rate", f"learning_rate {rate:g} is usual for method: {session.config.method}")
    return note(
        "rate",
        f"learning_rate {rate:g} is unusual for method: {session.config.method}: most runs use"
        f" {low:g} to {high:g} (LoRA takes about ten times the rate of full fine-tuning)",
    )


def step_findings(session: Session, step: StepReport) -> Iterator[Finding]:
    """What the step showed: gradients everywhere, a file that reads back, memory."""
    if step.still:
        yield fix(
            "gradients",
            f"{step.still} adapters or trained tensors did not move in a step: they get no"
            " gradient; leave their modules out of lora.target_modules",
        )
    else:
        yield ok("gradients", "every adapter moved in the step")
    yield ok("saving", "what was saved reads back bit for bit")
    free = free_memory(session.device)
    if step.peak_bytes > 0.9 * (free + step.peak_bytes):
        yield note(
            "memory",
            f"{text.size(step.peak_bytes)} at the peak, {text.size(free)} left: halve"
            " train.batch_size and double gradient_accumulation, which gives the same steps",
        )
    else:
        peak, left = text.size(step.peak_bytes), text.size(free)
        yield ok("memory", f"{peak} at the peak of the heaviest batch, {left} left")
