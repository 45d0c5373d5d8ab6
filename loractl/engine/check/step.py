"""One real step of a run, on its heaviest batch: forward, backward, save and reload."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from loractl.artifacts import files
from loractl.artifacts.peft import adapter as adapters
from loractl.data import batches
from loractl.engine.adapters import rank_policy
from loractl.engine.memory import Size, beside_the_weights
from loractl.engine.session import Session
from loractl.engine.trained import MODEL, write_trained
from loractl.errors import NumericError
from loractl.models.device import peak_memory
from loractl.planning.peak_memory import CPU_PROCESS
from loractl.records import Batch, DataState
from loractl.training.optim import LearningRate, Rates, build_optimizer, state_tensors
from loractl.training.state import TrainState
from loractl.training.steps import Recipe, steps


@dataclass(frozen=True)
class StepReport:
    """The measurements of the step."""

    loss: float  # mean over its trained tokens, in nats
    grad_norm: float
    rows: int
    length: int  # tokens of its longest row
    tokens: int
    seconds: float  # forward, backward and update
    save_seconds: float  # write, read back and compare
    estimated_bytes: int
    peak_bytes: int  # resident, or allocated on CUDA
    moved: int  # trained tensors that the step changed
    tensors: int
    still: int  # layers, or tensors trained in full, that the step left unchanged


def heaviest(session: Session) -> Batch:
    """The micro-batch of the first epoch with the most tokens."""
    examples, plan = session.data.train, session.plan
    return next(batches.in_order(examples, plan, size=plan.batch_size))


def estimated_bytes(session: Session, batch: Batch) -> int:
    """Peak bytes of a step on this batch, as `loractl estimate` predicts them; on a CPU, including
    the process itself."""
    model = session.model
    trained = session.parameters.values() if session.layers else ()
    adapters = {id(parameter) for parameter in trained}
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in adapters)
    beside = beside_the_weights(model, session.config, Size.of(batch), fast=session.is_fast)
    return weights + beside + (0 if session.device.type == "cuda" else CPU_PROCESS)


def one_step(session: Session) -> StepReport:
    """Take the step, save the trained tensors, read them back. Changes the session's model.

    Raises NumericError if the loss is not finite, if no tensor changes, or if a tensor read back
    differs from the one saved.
    """
    batch, parameters = heaviest(session), session.parameters
    peak = session.config.train.learning_rate or 1e-4
    name = session.config.train.optimizer
    optimizer = build_optimizer(name, parameters, Rates(peak, weight_decay=0.0))
    state = TrainState()
    recipe = Recipe(
        learning_rate=LearningRate(peak, "constant", 0, 1),
        max_grad_norm=session.config.train.max_grad_norm,
        seed=session.config.seed,
        device=session.device,
        scaler=torch.amp.GradScaler(session.device.type, enabled=session.dtype == torch.float16),
        ranks=rank_policy(session.config, session.layers, optimizer, session.total_steps),
    )
    before = {name: _mark(tensor) for name, tensor in parameters.items()}
    estimate = estimated_bytes(session, batch)
    session.model.train()
    windows = iter([([batch], DataState(0, 1, 1))])
    step = next(steps(session.loss, parameters, optimizer, windows, state, recipe))
    moved = {name for name, tensor in parameters.items() if _mark(tensor) != before[name]}
    if not moved:
        raise NumericError("the step changed no trained tensor; this config would train nothing")
    began = time.perf_counter()
    _save_and_reload(session, optimizer, state)
    return StepReport(
        loss=step.loss,
        grad_norm=step.grad_norm,
        rows=batch.input_ids.shape[0],
        length=batch.input_ids.shape[1],
        tokens=step.tokens,
        seconds=step.seconds,
        save_seconds=time.perf_counter() - began,
        estimated_bytes=estimate,
        peak_bytes=peak_memory(session.device),
        moved=len(moved),
        tensors=len(parameters),
        still=_still(session, moved),
    )


def _still(session: Session, moved: set[str]) -> int:
    """How many layers or tensors got no gradient. In a layer, B (or E) changes first: as long as it
    is zero, A gets no gradient."""
    alone = set(session.parameters)
    still = 0
    for layer in session.layers.values():
        own = {id(p) for p in layer.parameters(recurse=False)}
        names = {name for name, p in session.parameters.items() if id(p) in own}
        alone -= names
        still += not (names & moved)
    return still + len(alone - moved)


def _mark(tensor: torch.Tensor) -> tuple[float, float]:
    """Two sums, at least one of which changes when the tensor does."""
    values = tensor.detach().double()
    return float(values.sum()), float(values.square().sum())


def _save_and_reload(session: Session, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
    with tempfile.TemporaryDirectory(prefix="loractl-check-") as directory:
        path = Path(directory)
        write_trained(session, path, state)
        files.write_tensors(
            path / "optimizer.safetensors", state_tensors(optimizer, session.parameters)
        )
        if session.layers:
            adapters.read(path)  # like every command that takes an adapter
        found = files.read_tensors(path / (adapters.WEIGHTS if session.layers else MODEL))
        for name, parameter in session.parameters.items():
            if name not in found or not torch.equal(found[name], parameter.detach().cpu()):
                raise NumericError(f"{name}: the tensor read back differs from the one saved")
