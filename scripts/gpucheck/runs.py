"""A training run built of loractl's own parts, as engine/session.py builds one, without a config:
the adapters, the fast layers or transformers' own with segments, the loss, the optimizer, the loop.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loractl.artifacts.peft import names as peft_names
from loractl.lora.adalora import AdaloraLayer, Allocator, Budget, Smoothing
from loractl.lora.inject import adaptable, inject_
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import RankSpec, resolve
from loractl.lora.whole import matching, train_whole_
from loractl.models.fast.activations import fuse_activations_
from loractl.models.fast.trunk import Trunk
from loractl.models.forward import recompute_activations_
from loractl.models.load import head_name
from loractl.models.objective import TokenLoss
from loractl.models.proving_run import ProvingRun
from loractl.models.segments.install import use_segments_
from loractl.records import Batch, DataState
from loractl.training.optim import LearningRate, Rates, build_optimizer
from loractl.training.state import TrainState
from loractl.training.steps import Recipe, Step, steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS = 4
RATE, RATE_OF_HALVES = 1e-2, 1e-3
"""Learning rates. AdamW's first steps are as large as the rate, whatever the gradient's size: where
rounding turns the sign of one near 0, the weights are off by twice the rate. With int8 weights in
float16 the norm of the third step was off by 7e-3 at 1e-2, where all figures before it agreed."""
LOSS_SCALE = 1024.0
"""Of float16 at the start: no step is left out, as some are at torch's 65,536, and both sides take
the same ones."""
Window = tuple[list[Batch], DataState]


@dataclass(frozen=True)
class Way:
    """How to train a model."""

    formula: str = "lora"  # or dora, adalora, full
    init: str = "default"
    rank: int = 4
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    whole: tuple[str, ...] = ()  # modules trained in full
    quantization: str = ""
    checkpointing: bool = False
    fast: bool = True
    """Demand the layers by hand; False: transformers' layers, which attend by segments."""
    learning_rate: float = RATE
    total: int = STEPS

    def longer(self, total: int) -> "Way":
        return replace(self, total=total)


@dataclass
class Run:
    """A run that is ready to take steps."""

    model: "PreTrainedModel"
    layers: dict[str, LoraLayer]
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    loss: TokenLoss
    recipe: Recipe
    state: TrainState

    def go(self, windows: Sequence[Window]) -> list[Step]:
        return list(self.each(windows))

    def each(self, windows: Sequence[Window]) -> Iterator[Step]:
        return steps(self.loss, self.parameters, self.optimizer, windows, self.state, self.recipe)


def prepare(
    model: "PreTrainedModel", way: Way, dtype: torch.dtype, *, loss_scale: float = LOSS_SCALE
) -> Run:
    """Make a run of a model, which is on its device already and in `dtype` (full: in float32)."""
    device, full = model.device, way.formula == "full"
    layers, saved = ({}, {}) if full else _adapt_(model, way)
    if way.checkpointing:
        recompute_activations_(model)
    parameters = dict(model.named_parameters()) if full else peft_names.parameters(layers, saved)
    proof = ProvingRun(model)
    trunk = Trunk(model, proof) if way.fast else None
    if trunk is not None:
        assert not trunk.fallback_reason, f"not the layers by hand: {trunk.fallback_reason}"
    else:
        fuse_activations_(model)
        use_segments_(model)
        proof.forget_()
    wide = dtype if full and dtype != torch.float32 else None
    loss = TokenLoss(model, autocast=wide, trunk=trunk, run=proof)
    optimizer = build_optimizer("adamw", parameters, Rates(way.learning_rate, 0.0))
    scaler = torch.amp.GradScaler(
        device.type, init_scale=loss_scale, enabled=dtype == torch.float16
    )
    ranks = _allocator(layers, way.total) if way.formula == "adalora" else None
    rate = LearningRate(way.learning_rate, "linear", 0.0, way.total)
    recipe = Recipe(rate, 1.0, 0, device, scaler, ranks=ranks)
    return Run(model, layers, parameters, optimizer, loss, recipe, TrainState())


def _adapt_(model: "PreTrainedModel", way: Way) -> tuple[dict[str, LoraLayer], dict[str, Any]]:
    spec = RankSpec(way.rank, 2 * way.rank, way.targets)
    ranks = resolve(spec, adaptable(model), head=head_name(model))
    whole = [path for found in matching(model, way.whole).values() for path in found]
    layers = inject_(model, ranks, formula=way.formula, init=way.init, dropout=way.dropout)
    return layers, dict(train_whole_(model, whole))


def _allocator(layers: Mapping[str, LoraLayer], total: int) -> Allocator:
    """Half of the triplets are switched off on the way."""
    triplets = {name: one for name, one in layers.items() if isinstance(one, AdaloraLayer)}
    most = sum(one.rank for one in triplets.values())
    budget = Budget(most, most // 2, warmup=1, final=1, total=total, every=1)
    return Allocator(triplets, budget, smoothing=Smoothing(), orthogonality=0.5)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 in products of float32, nor sums of halves in halves."""
    of = torch.backends.cuda.matmul
    names = ("allow_tf32", "allow_bf16_reduced_precision_reduction",
             "allow_fp16_reduced_precision_reduction")  # fmt: skip
    former = {name: getattr(of, name) for name in names}
    for name in names:
        setattr(of, name, False)
    try:
        yield
    finally:
        for name, value in former.items():
            setattr(of, name, value)
