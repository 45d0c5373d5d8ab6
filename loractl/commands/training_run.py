"""The heavy half of `loractl train`, which brings torch: assemble, train, evaluate, save."""

import math
import time
from pathlib import Path
from typing import Any

import torch

from loractl import configfile, console
from loractl.artifacts import adapter as adapters
from loractl.artifacts import checkpoint, files, merged, metrics, peftconfig
from loractl.artifacts.rundir import RunDir, Status
from loractl.commands import restore
from loractl.commands.assemble import Session, assemble
from loractl.commands.signals import StopRequest
from loractl.configfile import Loaded
from loractl.errors import NumericError, Stopped
from loractl.models import load
from loractl.training.optim import adamw, state_tensors
from loractl.training.state import TrainState
from loractl.training.steps import Recipe, Step, steps


def train(loaded: Loaded, directory: RunDir, *, resume: bool, again: str) -> int:
    """Train from the start, or from the newest valid checkpoint. Raises Stopped after a signal.

    `again` is the command that goes on with a run that was stopped.
    """
    config = loaded.config
    extended = resume and directory.status() is Status.FINISHED
    resume = resume and not restore.never_saved(directory)
    session = assemble(loaded)
    optimizer = adamw(
        session.parameters,
        learning_rate=config.train.learning_rate,
        weight_decay=config.train.weight_decay,
        lora_plus_ratio=config.train.lora_plus_ratio,
    )
    scaler = torch.amp.GradScaler(session.device.type, enabled=session.dtype == torch.float16)
    state = TrainState()
    if resume:
        state = restore.restore_(session, optimizer, scaler, directory)
    else:
        directory.clear_()
    _open(session, directory, state)
    _introduce(session, state)
    session.model.train()
    recipe = Recipe(
        learning_rate=session.learning_rate,
        max_grad_norm=config.train.max_grad_norm,
        seed=config.seed,
        device=session.device,
        scaler=scaler,
    )
    run = _Run(session, directory, optimizer, state, recipe)
    # A kill may have come between the last step of a run that stopped early and its adapter.
    run.stopped_early = resume and not extended and run.is_patience_over()
    began = time.perf_counter()
    with (
        StopRequest() as stop,
        console.Progress(
            session.total_steps, start=state.step, log_every=config.train.log_every
        ) as progress,
    ):
        run.train(progress, stop)
    if stop.exit_code is not None and state.step < session.total_steps and not run.stopped_early:
        console.note(f"stopped after step {state.step}, saved; go on with: {again}")
        raise Stopped(stop.exit_code)
    final = _publish(session, directory, state)
    run.conclude(final, time.perf_counter() - began)
    return 0


class _Run:
    """A run in progress: the step after the step, and what is written of it."""

    def __init__(
        self,
        session: Session,
        directory: RunDir,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        recipe: Recipe,
    ) -> None:
        self.session = session
        self.directory = directory
        self.optimizer = optimizer
        self.state = state
        self.recipe = recipe
        self.stopped_early = False
        self.losses: list[float] = []
        self.eval_losses: list[float] = []

    def train(self, progress: console.Progress, stop: StopRequest) -> None:
        """Step until the end, a signal, or no better evaluation for too long; then save."""
        train, state, total = self.session.config.train, self.state, self.session.total_steps
        if self.stopped_early:
            return
        evaluates = bool(self.session.data.held_out or self.session.data.retain)
        if evaluates and state.step == 0:
            self._evaluate(progress)
        began, first = time.perf_counter(), state.step
        for step in steps(
            self.session.loss,
            self.session.parameters,
            self.optimizer,
            self.session.windows(state.data),
            state,
            self.recipe,
        ):
            self._log(step)
            left = (time.perf_counter() - began) / (step.step - first) * (total - step.step)
            progress.step(step.step, _line(step), seconds_left=left)
            last = step.step == total
            if evaluates and (last or _due(step.step, train.eval_every)):
                self._evaluate(progress)
                self.stopped_early = self.is_patience_over()
            ends = last or self.stopped_early or stop.exit_code is not None
            if ends or _due(step.step, train.save_every):
                self._save()
            if ends:
                return

    def is_patience_over(self) -> bool:
        """Whether as many evaluations as train.early_stopping allows brought nothing better."""
        patience = self.session.config.train.early_stopping
        return patience is not None and self.state.evals_without_better >= patience

    def _log(self, step: Step) -> None:
        self.losses.append(step.loss)
        row = {
            "step": step.step,
            "epoch": round(step.epoch, 4),
            "loss": step.loss,
            "lr": step.lr,
            # In fp16 a step whose gradients overflow is skipped: it has no norm.
            "grad_norm": step.grad_norm if math.isfinite(step.grad_norm) else None,
            "tokens": step.tokens,
            "trained_tokens": step.trained_tokens,
            "tokens_per_s": round(step.tokens / step.seconds, 1),
            "peak_memory_bytes": load.peak_memory(self.session.device),
        }
        metrics.append(self.directory.metrics, row)

    def _evaluate(self, progress: console.Progress) -> None:
        began = time.perf_counter()
        row: dict[str, Any] = {"step": self.state.step}
        said = []
        if self.session.data.held_out:
            loss = row["eval_loss"] = self.session.eval_loss()
            self.eval_losses.append(loss)
            self.state.note_eval(loss)
            said.append(f"held-out loss {loss:.4f}")
        if self.session.data.retain:
            row["retain_loss"] = self.session.retain_loss()
            said.append(f"loss on general text {row['retain_loss']:.4f}")
        metrics.append(self.directory.metrics, row)
        seconds = console.duration(time.perf_counter() - began)
        progress.say(f"step {self.state.step}: {', '.join(said)} ({seconds})")

    def _save(self) -> None:
        session = self.session
        for name, parameter in session.parameters.items():
            if not torch.isfinite(parameter).all():
                raise NumericError(
                    f"step {self.state.step}: {name} is no longer finite after the step, and not"
                    f" saved; try a lower learning_rate than {self.recipe.learning_rate.peak:g}"
                )
        files.sync(
            self.directory.metrics
        )  # so that no checkpoint knows of steps that the log lacks
        checkpoint.save(
            self.directory.checkpoints,
            self.state.step,
            write_model=lambda path: write_trained(session, path, self.state),
            optimizer=state_tensors(self.optimizer, session.parameters),
            state={"train": self.state.snapshot(), "inputs": restore.inputs(session)},
            keep=session.config.train.keep_checkpoints,
        )

    def conclude(self, final: Path, seconds: float) -> None:
        """Say what came of the run, and what can be done with it."""
        if self.stopped_early:
            console.note(
                f"stopped early: no better held-out loss than {self.state.best_eval_loss:.4f} in"
                f" the last {self.state.evals_without_better} evaluations"
            )
        if self.losses:
            console.note(
                f"done in {console.duration(seconds)}: loss {self.losses[0]:.4f} ->"
                f" {self.losses[-1]:.4f}"
            )
        if len(self.eval_losses) > 1:
            console.note(f"held-out loss {self.eval_losses[0]:.4f} -> {self.eval_losses[-1]:.4f}")
        console.note(f"wrote {final}")
        if self.session.config.method == "full":
            console.note(f"try it: loractl generate --model {final} --prompt TEXT")
        else:
            console.note(f"try it: loractl generate --adapter tuned={final} --prompt TEXT")
            console.note(f"merge it: loractl merge {final} --out DIR")


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _line(step: Step) -> str:
    memory = console.size(load.peak_memory(torch.device("cpu")))
    return f"loss {step.loss:.4f}  {step.tokens / step.seconds:,.0f} tokens/s  {memory}"


def _open(session: Session, directory: RunDir, state: TrainState) -> None:
    """Write what stands in a run directory from its start."""
    directory.path.mkdir(parents=True, exist_ok=True)
    directory.sweep_()
    for final in (directory.adapter, directory.model):
        if final.exists():
            files.remove(final)  # of a finished run that is being extended
    files.replace_text(directory.config, configfile.dump(session.config))
    accounts = {name: account.as_dict() for name, account in session.data.accounts.items()}
    files.write_json(directory.data, accounts)


def _introduce(session: Session, state: TrainState) -> None:
    """Say what is about to be trained, on what."""
    trained = sum(parameter.numel() for parameter in session.parameters.values())
    in_all = sum(parameter.numel() for parameter in session.model.parameters())
    read = session.data.of_train()
    dtype = str(session.dtype).removeprefix("torch.")
    console.note(f"model    {session.source.name} on {session.device.type}, {dtype}")
    if session.layers:
        console.note(
            f"adapter  {trained:,} trained parameters ({trained / (in_all - trained):.2%} of the"
            f" base) in {len(session.layers)} layers: {_kinds_of_layers(session)}"
        )
    else:
        console.note(f"weights  all {trained:,} parameters are trained")
    console.note(
        f"data     {sum(one.examples for one in read):,} examples,"
        f" {sum(one.tokens for one in read):,} tokens,"
        f" {sum(one.trained_tokens for one in read):,} of them trained;"
        f" {session.total_steps:,} steps"
    )


def _kinds_of_layers(session: Session) -> str:
    counts: dict[str, int] = {}
    for name in session.layers:
        last = name.rpartition(".")[2]
        counts[last] = counts.get(last, 0) + 1
    return ", ".join(f"{name} x{count}" for name, count in counts.items())


def write_trained(session: Session, directory: Path, state: TrainState) -> None:
    """Write what is trained, as a checkpoint keeps it: the adapter, or every weight in float32."""
    if not session.layers:
        files.write_tensors(
            directory / restore.MODEL, {n: p.cpu() for n, p in session.parameters.items()}
        )
        return
    adapters.write(
        directory,
        adapters.checkpoint_tensors(session.layers),
        config=session.adapter_config,
        about={**session.about(), "step": state.step},
        chat_template=_template(session),
    )


def write_final(session: Session, directory: Path, state: TrainState) -> None:
    """Write the adapter as every reader takes it, on the plain base."""
    config = session.adapter_config
    adapters.write(
        directory,
        adapters.plain_tensors(session.layers),
        config=peftconfig.doubled(config) if peftconfig.starts_at_parts(config) else config,
        about={**session.about(), "step": state.step},
        chat_template=_template(session),
    )


def _template(session: Session) -> str | None:
    template = session.tokenizer.chat_template
    return template if isinstance(template, str) else None


def _publish(session: Session, directory: RunDir, state: TrainState) -> Path:
    """Write the final adapter, or for method: full the complete model."""
    if session.layers:
        files.publish(directory.adapter, lambda path: write_final(session, path, state))
        return directory.adapter
    about: dict[str, Any] = {**session.about(), "step": state.step}
    files.publish(
        directory.model,
        lambda path: merged.write_model_(
            path, session.model, session.tokenizer, dtype=session.dtype, about=about
        ),
    )
    return directory.model
