"""The head of a run's page: what was trained on what, how far it is, and its few main figures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from loractl import text
from loractl.reports.run_page.content import FINISHED, TRAINING, RunContent
from loractl.reports.run_page.numbers import last, number, points, training_seconds

METHODS = {"lora": "LoRA", "dora": "DoRA", "adalora": "AdaLoRA", "full": "Full fine-tuning"}
STATES = {FINISHED: "finished", TRAINING: "in training", "stopped": "stopped before its end"}


@dataclass(frozen=True)
class Fact:
    """A figure in large type: what it is, its value, and a remark."""

    name: str
    value: str
    remark: str = ""


def base_name(run: RunContent) -> str:
    """The last part of the base's name, which is a path or a hub id."""
    name = str(run.settings.get("model.name_or_path", ""))
    return text.printable(PurePosixPath(name).name or name)


def lede(run: RunContent) -> str:
    """What was trained, in a sentence."""
    method = METHODS.get(run.method, run.method)
    rank = f" of rank {run.settings.get('lora.rank')}" if run.method in ("lora", "dora") else ""
    steps = text.counted(done_steps(run), "step")
    took = text.duration(training_seconds(run.metrics))
    return f"{method}{rank} on {base_name(run)}: {steps} in {took}, {STATES[run.state]}."


def done_steps(run: RunContent) -> int:
    """The last step in the metrics."""
    steps = [step for step, _ in points(run.metrics, "loss")] or [0]
    return int(max(steps))


def share_done(run: RunContent) -> float | None:
    """How much of the planned training is done, from 0 to 1, if the plan tells."""
    planned = number(run.settings.get("train.steps"))
    if planned:
        return min(1.0, done_steps(run) / planned)
    epochs, epoch = number(run.settings.get("train.epochs")), last(run.metrics, "epoch")
    return min(1.0, epoch / epochs) if epochs and epoch is not None else None


def seconds_left(run: RunContent) -> float | None:
    """How long the rest will take at the mean speed so far."""
    share = share_done(run)
    return training_seconds(run.metrics) * (1 / share - 1) if share else None


def facts(run: RunContent) -> list[Fact]:
    return list(_facts(run))


def _facts(run: RunContent) -> Iterator[Fact]:
    if (loss := held_out(run)) is not None:
        yield loss
    answers = run.notes.answers
    if answers:
        right = [
            sum(one.base.is_right for one in answers),
            sum(one.tuned.is_right for one in answers),
        ]
        what = f"of {len(answers)} held-out answers exactly as expected"
        yield Fact("Answers", f"{right[0]} → {right[1]}", what)
    curve = points(run.metrics, "loss")
    if curve and not (loss and answers):
        ends, of = [f"{curve[0][1]:.3g}", f"{curve[-1][1]:.3g}"], "first and last step"
        if len(curve) == 1:
            ends, of = ends[:1], "the only step"
        yield Fact("Training loss", " → ".join(ends), of)
    trained, whole = trained_parameters(run)
    if trained:
        share = f"{trained / whole:.2%} of the base's {whole:,}" if whole else ""
        yield Fact("Trained parameters", short_count(trained), share)
    speeds = [speed for _, speed in points(run.metrics, "tokens_per_s")]
    if speeds:
        peak = last(run.metrics, "peak_memory_bytes")
        remark = f"tokens a second, in {text.size(peak)} of memory" if peak else "tokens a second"
        yield Fact("Speed", f"{sorted(speeds)[len(speeds) // 2]:,.0f}", remark)


def held_out(run: RunContent) -> Fact | None:
    """The held-out loss before training and of what is published."""
    curve = points(run.metrics, "eval_loss")
    if not curve:
        return None
    step = number(run.about.get("step"))
    then = dict(curve).get(step, curve[-1][1]) if step is not None else curve[-1][1]
    if len(curve) == 1:
        return Fact("Held-out loss", f"{then:.3g}", "nats a token")
    return Fact(
        "Held-out loss", f"{curve[0][1]:.3g} → {then:.3g}", "nats a token, before and after"
    )


def trained_parameters(run: RunContent) -> tuple[int, int]:
    """(trained parameters, those of the base); 0 where planning knows no shape."""
    if not run.estimate:
        return 0, 0
    one = run.estimate["methods"][run.estimate["chosen"]]
    return int(one["trainable_parameters"]), int(run.estimate["model"]["parameters"])


def short_count(count: float) -> str:
    """12,345,678 as 12.3 M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"
