"""Settings that are valid on their own but not together. Part of `loader`."""

from collections.abc import Iterator

from loractl.config.optimizers import OPTIMIZERS
from loractl.config.settings import AdaloraSection, LoraSection, RunConfig


def conflicts(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for settings that are valid on their own but not together."""
    train, data = config.train, config.data
    if train.steps is not None and train.epochs is not None:
        yield "train.steps", "set together with train.epochs, expected only one of them; remove one"
    if train.steps is not None and train.warmup >= 1 and train.warmup > train.steps:
        yield (
            "train.warmup",
            f"{train.warmup:.15g} warmup steps are more than train.steps ({train.steps}), expected "
            "fewer; a value below 1 is a share of the steps",
        )
    if data.split_turns and data.train_on != "assistant":
        yield "data.split_turns", f"an example an answer, and train_on: {data.train_on}; remove one"
    if train.eval_every is not None and data.eval is None:
        yield "train.eval_every", "set, but data.eval is not; set data.eval or remove it"
    if train.lora_plus_ratio != 1 and config.method == "full":
        yield "train.lora_plus_ratio", "applies to adapters, and method: full has none; remove it"
    if train.non_finite_limit != 3 and train.on_non_finite != "skip":
        yield (
            "train.non_finite_limit",
            "applies only to on_non_finite: skip; set that, or remove it",
        )
    if train.early_stopping is not None and train.eval_every is None:
        yield "train.early_stopping", "needs evaluations during training; set train.eval_every"
    yield from _quantization_conflicts(config)
    tokens = config.model.add_tokens
    if twice := next((token for token in tokens if tokens.count(token) > 1), None):
        yield "model.add_tokens", f"found {twice!r} twice, expected different tokens; remove one"
    for name in ("rank_pattern", "alpha_pattern"):
        if "" in getattr(config.lora, name):
            yield f"lora.{name}", "found an empty module name, expected a name or a regex"
    if config.lora.start_from is not None and config.method in ("full", "adalora"):
        yield (
            "lora.start_from",
            f"method: {config.method} cannot continue from an adapter; remove it",
        )
    if config.lora.start_from is not None and config.lora.rank_schedule:
        yield "lora.rank_schedule", "an adapter that is trained further keeps its rank; remove it"
    if config.lora.modules_to_save and config.method == "full":
        yield "lora.modules_to_save", "method: full trains every module; remove it"
    yield from _rank_conflicts(config)


def _quantization_conflicts(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Conflicts of a frozen base in few bits."""
    model = config.model
    if model.quantization != "none" and config.method == "full":
        yield (
            "model.quantization",
            "method: full trains every weight, and a quantized one cannot be trained; remove it, or"
            " use method: lora",
        )
    if model.offload != "none" and config.method == "full":
        yield "model.offload", "method: full trains every weight, and streamed ones are only read"
    if model.offload != "none" and config.train.kernels == "compile":
        yield (
            "model.offload",
            "train.kernels: compile recomputes layers without asking for their weights; remove one",
        )
    if model.quantize_head and model.quantization == "none":
        yield "model.quantize_head", "set, but model.quantization is none; set that, or remove it"
    if model.quantize_head and model.add_tokens:
        yield (
            "model.quantize_head",
            "a quantized head cannot grow for model.add_tokens; remove one of them",
        )


def _rank_conflicts(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Conflicts between settings that change ranks during a run."""
    lora, steps = config.lora, config.train.steps
    if config.method == "adalora":
        if lora.rank != LoraSection.model_fields["rank"].default:
            yield "lora.rank", "method: adalora starts at lora.adalora.initial_rank; set that"
        for name, neutral in (("rank_pattern", {}), ("alpha_pattern", {}), ("init", "default")):
            if getattr(lora, name) != neutral:
                yield (
                    f"lora.{name}",
                    "method: adalora has its own ranks and initialization; remove it",
                )
        if lora.adalora.target_rank > lora.adalora.initial_rank:
            yield (
                "lora.adalora.target_rank",
                f"found {lora.adalora.target_rank}, expected at most initial_rank"
                f" ({lora.adalora.initial_rank}): ranks only fall",
            )
        if steps is not None and (wrong := adalora_steps(lora.adalora, steps)):
            yield "lora.adalora", wrong
    elif lora.adalora != AdaloraSection():
        yield (
            "lora.adalora",
            f"applies to method: adalora, but method is {config.method}; remove it",
        )
    if not lora.rank_schedule:
        return
    if config.method in ("adalora", "full"):
        yield "lora.rank_schedule", f"method: {config.method} has no rank to change; remove it"
    if lora.rank_pattern or lora.init in ("pissa", "olora"):
        what = "rank_pattern" if lora.rank_pattern else f"init: {lora.init}"
        yield "lora.rank_schedule", f"cannot be combined with {what}; remove one of them"
    if OPTIMIZERS[config.train.optimizer].others is not None:
        able = ", ".join(name for name, kind in OPTIMIZERS.items() if kind.others is None)
        yield (
            "lora.rank_schedule",
            f"the state of train.optimizer: {config.train.optimizer} cannot follow a change of"
            f" rank, expected one of {able}; set one, or remove the schedule",
        )
    if steps is not None and max(lora.rank_schedule) > steps:
        yield "lora.rank_schedule", past_the_end(max(lora.rank_schedule), steps)


def adalora_steps(section: AdaloraSection, steps: int) -> str | None:
    """What is wrong with AdaLoRA's phases in a run of this many steps, or None."""
    spent = section.warmup_steps + section.final_steps
    if spent < steps:
        return None
    return (
        f"warmup_steps + final_steps is {spent}, which leaves none of the run's {steps} steps for"
        f" ranks to fall, expected fewer than {steps}; lower them, or train longer"
    )


def past_the_end(step: int, steps: int) -> str:
    """What is wrong with a rank change that comes too late."""
    return f"step {step} is past the run's last step, {steps}; remove it, or train longer"
