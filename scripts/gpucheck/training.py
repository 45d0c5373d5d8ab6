"""Four steps of training on the device against the same steps on the CPU in float32.

A run is built of loractl's own parts as engine/session.py builds one, without a config: the
adapters, the fast layers or transformers' own with segments, the loss, the optimizer, the loop.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gpucheck.models import batch_of
from gpucheck.ops import masks_of_the_cpu
from gpucheck.place import Check, Place, farthest
from gpucheck.report import Figure, Found
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
from loractl.models.packed_load import pack_
from loractl.models.proving_run import ProvingRun
from loractl.models.segments.install import use_segments_
from loractl.models.torch_dtypes import dtype_word
from loractl.quant.kinds import Quantization
from loractl.records import Batch, DataState
from loractl.training.optim import LearningRate, Rates, build_optimizer
from loractl.training.state import TrainState
from loractl.training.steps import Recipe, Step, steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS = 4
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Relative, of losses. In float32 both sides add in another order. In halves the base is the same
numbers, but every product is rounded: a loss may be off by half a unit in the last place, 2^-8 and
2^-11, though each is a mean over many tokens."""
NORMS = 10
"""So many times more for the norm of all gradients, which adds up what each of them is off."""
CPU = torch.device("cpu")
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
    learning_rate: float = 1e-2
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


def prepare(model: "PreTrainedModel", way: Way, dtype: torch.dtype) -> Run:
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
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
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


@dataclass(frozen=True)
class Case:
    """A run of the matrix: a model, how it is trained, and its rows."""

    way: Way = field(default_factory=Way)
    architecture: str = "llama"
    packed: bool = False
    accumulation: int = 1
    halves: bool = True  # also in bfloat16 and float16


def case(
    architecture: str = "llama", *, packed: bool = False, accumulation: int = 1,
    halves: bool = True, **way: Any,
) -> Case:  # fmt: skip
    return Case(Way(**way), architecture, packed, accumulation, halves)


TABLES = ("q_proj", "embed_tokens", "lm_head")
CASES: dict[str, Case] = {
    "lora": case(),
    "packed": case(packed=True),
    "dora": case(formula="dora", fast=False, packed=True),
    "plain": case(fast=False, packed=True),
    "dropout": case(dropout=0.2, packed=True),
    "checkpointing": case(checkpointing=True, packed=True),
    "accumulation": case(accumulation=3),
    "adalora": case(formula="adalora", halves=False),
    "pissa": case(init="pissa"),
    "olora": case(init="olora"),
    "full": case(formula="full", fast=False),
    "nf4": case(quantization="nf4", packed=True),
    "nf4-double": case(quantization="nf4-double"),
    "int8": case(quantization="int8"),
    "tables": case(targets=TABLES, fast=False),
    "whole": case(whole=("lm_head", "norm"), targets=("q_proj", "v_proj"), fast=False),
    "gemma3": case("gemma3", packed=True),
    "qwen3": case("qwen3", packed=True),
    "mistral": case("mistral", packed=True),
    "gpt2": case("gpt2", fast=False),
    "mixtral": case("mixtral", fast=False, targets=("q_proj", "gate_up_proj", "down_proj")),
}


def small(architecture: str, dtype: torch.dtype, place: Place) -> "PreTrainedModel":
    """A random model on the CPU in float32, its values rounded to `dtype`: small on a GPU, tiny on
    a pretend one. Weights are four times as large as usual, or errors would hide behind zeros."""
    import transformers

    from tests.tiny import ARCHITECTURES, CAUSAL

    name, shape = ARCHITECTURES[architecture]
    shape = {**shape, "vocab_size": 160, "bos_token_id": 1, "eos_token_id": 2}
    if not place.pretend:
        shape |= LARGER_GPT2 if architecture == "gpt2" else LARGER
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**shape)
    model: PreTrainedModel = getattr(transformers, CAUSAL.get(name, f"{name}ForCausalLM"))(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
            parameter.copy_(parameter.to(dtype).float())
    return model.train()


LARGER: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 640, "num_attention_heads": 8, "head_dim": 64,
    "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 2000,
}  # fmt: skip
LARGER_GPT2 = {"n_embd": 256, "n_inner": 640, "n_head": 4, "n_layer": 3, "vocab_size": 2000}


def windows(
    place: Place, vocabulary: int, *, packed: bool, accumulation: int, total: int = STEPS
) -> list[Window]:
    """Rows of each step: examples of different length, packed or padded."""
    k = 1 if place.pretend else 4
    rows = [[20 * k, 5 * k, 11 * k], [30 * k, 6 * k]] if packed else [[24 * k], [9 * k], [17 * k]]
    each = range(total * accumulation)
    batches = [batch_of(rows, vocabulary, seed) for seed in each]
    parts = [batches[i : i + accumulation] for i in each[::accumulation]]
    return [(part, DataState(0, i + 1, total)) for i, part in enumerate(parts)]


def trained_on(place: Place, chosen: Case, dtype: torch.dtype, device: torch.device) -> Run:
    """A run of a case: on the CPU it is in float32, with the numbers that `dtype` has."""
    model = small(chosen.architecture, dtype, place)
    computes = dtype if device.type != "cpu" else torch.float32
    if chosen.way.formula != "full":
        model.to(computes)
    if kind := chosen.way.quantization:
        pack_(model, Quantization(kind, dtype_word(computes)), dense=False)
    return prepare(model.to(device), chosen.way, computes)


def compare(place: Place, *, name: str) -> Found:
    """Losses and norms of each step, in each dtype."""
    chosen, figures, more = CASES[name], list[Figure](), {}
    for dtype, bound in BOUNDS.items() if chosen.halves else [(torch.float32, 1e-5)]:
        taken: list[list[Step]] = []
        with masks_of_the_cpu(), exact_products():
            for device in (CPU, place.device):
                run = trained_on(place, chosen, dtype, device)
                rows = windows(
                    place, run.model.config.vocab_size, packed=chosen.packed,
                    accumulation=chosen.accumulation,
                )  # fmt: skip
                taken.append(run.go(rows))
        word = dtype_word(dtype)
        here, there = ([one.loss for one in side] for side in taken)
        figures.append(Figure(f"{word} losses", farthest(there, here), bound))
        norms = [[one.grad_norm for one in side] for side in taken]
        figures.append(Figure(f"{word} norms", farthest(norms[1], norms[0]), NORMS * bound))
        assert here[0] != here[-1], f"nothing was learned: {here}"
        more[word] = {"cpu": here, "device": there}
    return Found(tuple(figures), more=more)


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


CHECKS = tuple(Check(f"training/{name}", partial(compare, name=name), 6) for name in CASES)
