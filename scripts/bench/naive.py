"""LoRA written down as its formula, over transformers: what ours is held to.

    python -m bench.naive curves CONFIG --steps N    losses of N steps of training, one JSON line
    python -m bench.naive bias CONFIG --steps N      losses of N batches: loractl and transformers
                                                     in bfloat16, transformers in float32

Base, rows, their order and the first A and B are those of `loractl train CONFIG`. Each example goes
through the model alone, so nothing is packed or padded; all logits, F.cross_entropy, AdamW.
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bench.rows import rows_of
from loractl.config import loader
from loractl.engine.session import Session, assemble
from loractl.records import UNTRAINED, Batch, DataState

SIZE_OF_B = 1e-3  # standard deviation of a B that has trained a little


class Naive(nn.Module):
    """W x + s B A x."""

    def __init__(self, base: nn.Module, A: Tensor, B: Tensor, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)  # (r, d_in) and (d_out, r), float32

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + self.scale * (x @ self.A.T.to(x.dtype)) @ self.B.T.to(x.dtype)


@dataclass(frozen=True)
class Start:
    """The A, B and scale of a layer, copied."""

    A: Tensor
    B: Tensor
    scale: float


def starts(session: Session) -> dict[str, Start]:
    return {
        path: Start(layer.A.detach().clone(), layer.B.detach().clone(), layer.scale)
        for path, layer in session.layers.items()
    }


def naive_model(path: str, dtype: torch.dtype, adapters: Mapping[str, Start]) -> nn.Module:
    """The base from transformers, with the formula in the place of each adapted layer."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).requires_grad_(False)
    for name, start in adapters.items():
        parent, _, last = name.rpartition(".")
        base = model.get_submodule(name)
        naive = Naive(base, start.A.clone(), start.B.clone(), start.scale)
        setattr(model.get_submodule(parent), last, naive)
    return model.train()


def window_loss(model: nn.Module, window: Sequence[Batch]) -> Tensor:
    """Mean cross-entropy over the trained tokens of a window, example by example."""
    sums, count = [], 0
    for row in (row for batch in window for row in rows_of(batch)):
        labels = torch.tensor(row["labels"][1:])
        logits = model(input_ids=torch.tensor([row["ids"]]), use_cache=False).logits[0, :-1]
        exact = logits.double()  # in float32 torch's sum over 49,152 columns is 1e-5 off
        sums.append(F.cross_entropy(exact, labels, ignore_index=UNTRAINED, reduction="sum"))
        count += int((labels != UNTRAINED).sum())
    return torch.stack(sums).sum() / count


def windows(session: Session, count: int) -> Iterator[list[Batch]]:
    return (window for window, _ in islice(session.windows(DataState(0, 0)), count))


def curves(config: Path, steps: int) -> dict[str, Any]:
    """Train naively; the losses before each step."""
    loaded = loader.load(config)
    session = assemble(loaded)
    rows, adapters = list(windows(session, steps)), starts(session)
    path, dtype, train = session.source.name, session.dtype, loaded.config.train
    del session
    model = naive_model(path, dtype, adapters)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=train.learning_rate, weight_decay=train.weight_decay)
    losses = []
    for window in rows:
        loss = window_loss(model, window)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": losses}


def bias(config: Path, batches: int) -> dict[str, Any]:
    """Losses of the same batches and adapters in the three ways, and the differences' statistics.

    B is random, not zero, so that the adapters are a part of what is compared; ours runs as in
    training, with gradients to come.
    """
    session = assemble(loader.load(config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in session.layers.values():
            layer.B.copy_(torch.randn(layer.B.shape, generator=generator) * SIZE_OF_B)
    adapters, rows, path = starts(session), list(windows(session, batches)), session.source.name
    session.model.train()
    losses: dict[str, list[float]] = {"loractl": []}
    for window in rows:
        pairs = [session.loss(batch) for batch in window]
        total = sum(float(loss_sum.detach()) for loss_sum, _ in pairs)
        losses["loractl"].append(total / sum(count for _, count in pairs))
        del pairs  # its graph
    del session
    for name, dtype in (("transformers", torch.bfloat16), ("float32", torch.float32)):
        model = naive_model(path, dtype, adapters)
        with torch.no_grad():
            losses[name] = [window_loss(model, window).item() for window in rows]
        del model
    return {"losses_of": losses, **{n: off(losses[n], losses["float32"]) for n in list(losses)[:2]}}


def off(losses: Sequence[float], exact: Sequence[float]) -> dict[str, float]:
    """Mean signed difference, its standard error, and the spread of the differences."""
    differences = [a - b for a, b in zip(losses, exact, strict=True)]
    spread = statistics.stdev(differences)
    return {
        "mean": statistics.mean(differences),
        "standard_error": spread / math.sqrt(len(differences)),
        "spread": spread,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["curves", "bias"])
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    asked = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # the last line of stdout is ours
        found = {"curves": curves, "bias": bias}[asked.what](asked.config, asked.steps)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
