"""A run that is saved after two of four steps and continued by new objects is the whole run."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpucheck.place import Check, Place, farthest, relative
from gpucheck.report import Figure, Found
from gpucheck.runs import STEPS, Run
from gpucheck.training import Case, case, trained_on, windows
from loractl.config.optimizers import OPTIMIZERS
from loractl.lora.dynamic import set_values_
from loractl.training.optim import restore_state_, state_tensors
from loractl.training.state import TrainState

SAVED = STEPS // 2
CASES: dict[str, Case] = {
    "lora": case(packed=True),
    "dora": case(formula="dora", fast=False, packed=True),
    "adalora": case(formula="adalora", packed=True),
    "pissa": case(init="pissa", packed=True),
    "dropout": case(dropout=0.2, packed=True),
    "full": case(formula="full", fast=False, packed=True),
}
OFF = 5e-3
"""Relative, of losses without deterministic algorithms: the flash kernel adds up dq by atomics, in
any order, and bfloat16 rounds what comes of it; four steps carry it on."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a checkpoint keeps, on the CPU."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    starts: dict[str, tuple[Tensor, Tensor]]
    ranks: dict[str, Tensor]
    state: dict[str, Any]


def saved(run: Run) -> Checkpoint:
    def copied(tensors: Any) -> dict[str, Tensor]:
        return {name: one.detach().cpu().clone() for name, one in tensors.items()}

    starts = {
        path: (layer.A0.cpu(), layer.B0.cpu())
        for path, layer in run.layers.items()
        if layer.A0 is not None and layer.B0 is not None
    }
    ranks = copied(run.recipe.ranks.tensors()) if run.recipe.ranks is not None else {}
    optimizer = copied(state_tensors(run.optimizer, run.parameters))
    return Checkpoint(copied(run.parameters), optimizer, starts, ranks, run.state.snapshot())


def restore_(run: Run, found: Checkpoint) -> None:
    """Put a checkpoint into a new run."""
    for name, parameter in run.parameters.items():
        set_values_(parameter, found.weights[name].to(parameter.device))
    for path, (A0, B0) in found.starts.items():
        device = run.layers[path].A.device
        run.layers[path].count_from_(A0.to(device), B0.to(device))
    restore_state_(run.optimizer, run.parameters, found.optimizer, OPTIMIZERS["adamw"])
    if run.recipe.ranks is not None:
        run.recipe.ranks.restore_(found.ranks)
    run.state = TrainState.restored(found.state)
    if run.recipe.scaler.is_enabled():
        run.recipe.scaler.load_state_dict(run.state.loss_scale)


@contextlib.contextmanager
def determined(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms; CUBLAS_WORKSPACE_CONFIG is set when the process starts."""
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def compare(place: Place, *, name: str, dtype: torch.dtype, exactly: bool) -> Found:
    """Losses of the last steps and the weights after them, continued against uninterrupted."""
    chosen = CASES[name]

    def start() -> Run:
        return trained_on(place, chosen, dtype, place.device)

    with determined(exactly):
        whole = start()
        vocabulary = whole.model.config.vocab_size
        rows = windows(place, vocabulary, packed=chosen.packed, accumulation=chosen.accumulation)
        expected = [one.loss for one in whole.go(rows)]
        first, second = start(), start()
        before = [one.loss for one in first.go(rows[:SAVED])]
        restore_(second, saved(first))
        found = before + [one.loss for one in second.go(rows[SAVED:])]
    losses = Figure("losses", farthest(found, expected), 0 if exactly else OFF)
    pairs = [(second.parameters[key], one) for key, one in whole.parameters.items()]
    off = max(relative(a, b) for a, b in pairs if bool(b.detach().any()))
    weights = Figure("weights", off, 0 if exactly else None)
    return Found((losses, weights), more={"whole": expected, "continued": found})


CHECKS = (
    *(
        Check(
            f"resume/{name}{'' if exactly else '-undetermined'}",
            partial(compare, name=name, dtype=torch.bfloat16, exactly=exactly), 3,
        )
        for exactly in (True, False)
        for name in CASES
    ),
    Check("resume/float16", partial(compare, name="lora", dtype=torch.float16, exactly=True), 3),
)  # fmt: skip
