"""The heavy half of `loractl train`, which imports torch: assemble, train, evaluate, save."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from loractl import console, text
from loractl.artifacts import files
from loractl.artifacts.run import checkpoint, metrics
from loractl.artifacts.run.directory import RunDir, Status
from loractl.config import loader
from loractl.config.loader import Loaded
from loractl.engine import capacity
from loractl.engine import resume as resuming
from loractl.engine.adapters import rank_policy
from loractl.engine.publish import publish_
from loractl.engine.session import Session, assemble
from loractl.engine.summary import conclude, introduce
from loractl.engine.trained import write_trained
from loractl.errors import NumericError, Stopped
from loractl.models.device import peak_memory
from loractl.paths import address
from loractl.progress import Progress
from loractl.signals import StopRequest
from loractl.training.optim import Rates, build_optimizer, state_tensors
from loractl.training.state import TrainState
from loractl.training.steps import Recipe, Step, steps
from loractl.world import World


def prepare(loaded: Loaded, directory: RunDir, world: World, *, resume: bool) -> "_Run":
    """Load everything and restore the newest valid checkpoint when resuming; write nothing yet."""
    console.speak_as(world)
    config = loaded.config
    extended = resume and directory.status() is Status.FINISHED
    resume = resume and not resuming.never_saved(directory)
    session = assemble(loaded, world)
    rates = Rates(
        config.train.learning_rate, config.train.weight_decay, config.train.lora_plus_ratio
    )
    optimizer = build_optimizer(config.train.optimizer, session.parameters, rates)
    scaler = torch.amp.GradScaler(session.device.type, enabled=session.dtype == torch.float16)
    state = TrainState()
    ranks = rank_policy(config, session.layers, optimizer, session.total_steps)
    if resume:
        state = resuming.restore_(session, optimizer, scaler, directory, ranks)
    skips = config.train.on_non_finite == "skip"
    recipe = Recipe(
        learning_rate=session.learning_rate,
        max_grad_norm=config.train.max_grad_norm,
        seed=config.seed,
        device=session.device,
        scaler=scaler,
        non_finite_limit=config.train.non_finite_limit if skips else 1,
        ranks=ranks,
        world=session.world,
    )
    capacity.require(session, directory, state)
    run = _Run(session, directory, optimizer, state, recipe, resumed=resume)
    # A run that stopped early may have been killed before it wrote its adapter.
    run.stopped_early = resume and not extended and run.is_patience_over()
    return run


def train(run: "_Run", stop: StopRequest, *, again: str) -> int:
    """Train to the end and publish the result. Raises Stopped after a signal.

    `again` is the command that continues a stopped run.
    """
    session, directory, state = run.session, run.directory, run.state
    if session.world.is_first:
        _open_run(session, directory, state, resumed=run.resumed)
    introduce(session)
    session.model.train()
    began = time.perf_counter()
    with (
        capacity.shortage_explained(session),
        Progress(
            session.total_steps, start=state.step, log_every=session.config.train.log_every
        ) as progress,
    ):
        run.train(progress, stop)
    is_done = state.step >= session.total_steps or run.stopped_early
    if stop.exit_code is not None and (state.eval_pending or not is_done):
        after = f"after step {state.step}, saved" if state.step else "before the first step"
        console.note(f"stopped {after}; continue with: {again}")
        raise Stopped(stop.exit_code)
    if state.skipped == state.step:
        raise NumericError(
            f"none of the {state.step} steps had a finite loss and gradient: nothing was trained;"
            f" try a learning_rate below {run.recipe.learning_rate.peak:g}"
        )
    published = publish_(session, directory, state)
    if run.stopped_early:
        console.note(
            f"stopped early: no better held-out loss than {state.best_eval_loss:.4f} in the last"
            f" {state.evals_without_better} evaluations"
        )
    conclude(session, published, run.losses, time.perf_counter() - began)
    return 0


@dataclass
class _Run:
    """A run in progress: takes step after step and writes what there is to record."""

    session: Session
    directory: RunDir
    optimizer: torch.optim.Optimizer
    state: TrainState
    recipe: Recipe
    resumed: bool
    stopped_early: bool = False
    losses: list[float] = field(default_factory=list)  # of the steps taken

    def train(self, progress: Progress, stop: StopRequest) -> None:
        """Train until the end, a signal, or too many evaluations without progress; then save."""
        train, state, total = self.session.config.train, self.state, self.session.total_steps
        if self.stopped_early:
            return
        evaluates = bool(self.session.data.held_out or self.session.data.retain)
        if evaluates and (state.step == 0 or state.eval_pending):
            self._evaluate_now(progress, stop)
            self.stopped_early = self.is_patience_over()
            if state.eval_pending or self.stopped_early:
                return
        began, first = time.perf_counter(), state.step
        for step in steps(
            self.session.loss,
            self.session.parameters,
            self.optimizer,
            self.session.windows(state.data),
            state,
            self.recipe,
        ):
            self._log_step(step)
            left = (time.perf_counter() - began) / (step.step - first) * (total - step.step)
            progress.step(step.step, _progress_line(step, self.session.device), seconds_left=left)
            if step.skipped:
                progress.say(
                    f"step {step.step}: skipped, the weights are unchanged: {step.skipped}"
                )
            last = step.step == total
            if evaluates and (last or _is_due(step.step, train.eval_every)):
                self._evaluate_now(progress, stop)
                self.stopped_early = self.is_patience_over()
            ends = last or self.stopped_early or stop.exit_code is not None
            if ends or _is_due(step.step, train.save_every):
                self._save_checkpoint()
            if ends:
                return

    def is_patience_over(self) -> bool:
        """Whether the last train.early_stopping evaluations brought no improvement."""
        patience = self.session.config.train.early_stopping
        return patience is not None and self.state.evals_without_better >= patience

    def _log_step(self, step: Step) -> None:
        if not step.skipped:
            self.losses.append(step.loss)
        row: dict[str, Any] = {
            "step": step.step,
            "epoch": round(step.epoch, 4),
            "loss": step.loss if math.isfinite(step.loss) else None,
            "lr": step.lr,
            # In fp16 a step whose gradients overflow is skipped and has no norm.
            "grad_norm": step.grad_norm if math.isfinite(step.grad_norm) else None,
            "tokens": step.tokens,
            "trained_tokens": step.trained_tokens,
            "tokens_per_s": round(step.tokens / step.seconds, 1),
            "peak_memory_bytes": peak_memory(self.session.device),
        }
        if step.skipped:
            row |= {"skipped": step.skipped, "skipped_steps": self.state.skipped}
        self._append_row(row)

    def _evaluate_now(self, progress: Progress, stop: StopRequest) -> None:
        """Evaluate and log the result; after a signal, `state.eval_pending` marks it as due."""
        began, state = time.perf_counter(), self.state
        state.eval_pending = True
        row: dict[str, Any] = {"step": state.step}
        held_out, is_best = None, False
        try:
            with stop.at_once():
                if self.session.data.held_out:
                    held_out = self.session.eval_loss()
                if self.session.data.retain:
                    row["retain_loss"] = self.session.retain_loss().mean
        except Stopped:
            return
        state.eval_pending = False
        said = []
        if held_out is not None:
            row["eval_loss"] = held_out.mean
            ranks = self.recipe.ranks
            settled = ranks is None or state.step >= ranks.settled
            is_best = state.note_eval(held_out, is_candidate=settled)
            said.append(f"held-out loss {held_out.mean:.4f}")
        if "retain_loss" in row:
            said.append(f"loss on general text {row['retain_loss']:.4f}")
        self._append_row(row)
        seconds = text.duration(time.perf_counter() - began)
        progress.say(f"step {state.step}: {', '.join(said)} ({seconds})")
        train = self.session.config.train
        if is_best and train.keep == "best" and train.eval_every is not None:
            self._save_best()

    def _append_row(self, row: dict[str, Any]) -> None:
        if self.session.world.is_first:
            metrics.append(self.directory.metrics, row)

    def _require_finite(self) -> None:
        trained = self.session.parameters
        finite = torch.stack([torch.isfinite(one).all() for one in trained.values()]).tolist()
        for name, is_finite in zip(trained, finite, strict=True):
            if not is_finite:
                raise NumericError(
                    f"step {self.state.step}: {name} is no longer finite after the step and is not"
                    f" saved; try a learning_rate below {self.recipe.learning_rate.peak:g}"
                )

    def _save_best(self) -> None:
        """Keep these weights for the end. Before the checkpoint of the same step, whose state says
        that they are there."""
        session = self.session
        self._require_finite()
        if session.world.is_first:
            checkpoint.save_best(
                self.directory.checkpoints,
                self.state.step,
                write_model=lambda path: write_trained(session, path, self.state),
                state={"train": self.state.snapshot()},
                needs=capacity.of_weights(session),
            )

    def _save_checkpoint(self) -> None:
        session = self.session
        self._require_finite()
        if not session.world.is_first:
            return
        # First, so that no checkpoint has steps that the log lacks
        files.sync(self.directory.metrics)
        checkpoint.save(
            self.directory.checkpoints,
            self.state.step,
            write_model=lambda path: write_trained(session, path, self.state, self.recipe.ranks),
            optimizer=state_tensors(self.optimizer, session.parameters),
            state={"train": self.state.snapshot(), "inputs": resuming.inputs(session)},
            keep=session.config.train.keep_checkpoints,
            needs=capacity.of_checkpoint(session),
        )


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _progress_line(step: Step, device: torch.device) -> str:
    memory = text.size(peak_memory(device))
    return f"loss {step.loss:.4f}  {step.tokens / step.seconds:,.0f} tokens/s  {memory}"


def _open_run(session: Session, directory: RunDir, state: TrainState, *, resumed: bool) -> None:
    """Write the files that a run directory has from the start; keep the metrics that still hold."""
    directory.sweep_()
    if resumed:
        metrics.keep_until(directory.metrics, state.step, evaluated=not state.eval_pending)
        # The run may have been killed between a save and the removal of the oldest checkpoint.
        keep = session.config.train.keep_checkpoints
        checkpoint.rotate(directory.checkpoints, state.step, keep)
    else:
        directory.clear_()
    for final in (directory.adapter, directory.model, directory.notes, directory.report):
        if final.exists():
            files.remove(final)  # of a finished run that is being extended
    files.replace_text(directory.config, loader.dump(session.config))
    accounts = {
        name: account.as_dict() | {"path": address(account.path)}
        for name, account in session.data.accounts.items()
    }
    files.replace_text(directory.data, files.as_json(accounts))
