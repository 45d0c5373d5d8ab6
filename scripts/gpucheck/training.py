"""Four steps of training on the device against the same steps on the CPU in float32."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from gpucheck.models import batch_of
from gpucheck.ops import masks_of_the_cpu
from gpucheck.place import Check, Place, farthest
from gpucheck.report import Figure, Found
from gpucheck.runs import (
    LOSS_SCALE,
    RATE_OF_HALVES,
    STEPS,
    Run,
    Way,
    Window,
    exact_products,
    prepare,
)
from loractl.models.packed_load import pack_
from loractl.models.torch_dtypes import dtype_word
from loractl.quant.kinds import Quantization
from loractl.records import DataState
from loractl.training.steps import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Relative, of losses. In float32 both sides add in another order. In halves the base is the same
numbers, but every product is rounded: a loss may be off by half a unit in the last place, 2^-8 and
2^-11, though each is a mean over many tokens."""
NORMS = 4
"""So many times more for the norm of all gradients, which adds up what each of them is off."""
CPU = torch.device("cpu")


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


def trained_on(
    place: Place, chosen: Case, dtype: torch.dtype, device: torch.device, *,
    loss_scale: float = LOSS_SCALE,
) -> Run:  # fmt: skip
    """A run of a case: on the CPU it is in float32, with the numbers that `dtype` has."""
    model = small(chosen.architecture, dtype, place)
    computes = dtype if device.type != "cpu" else torch.float32
    if chosen.way.formula != "full":
        model.to(computes)
    if kind := chosen.way.quantization:
        pack_(model, Quantization(kind, dtype_word(computes)), dense=False)
    return prepare(model.to(device), chosen.way, computes, loss_scale=loss_scale)


def compare(place: Place, *, name: str) -> Found:
    """Losses and norms of each step, in each dtype."""
    figures, more = list[Figure](), {}
    for dtype, bound in BOUNDS.items():
        chosen = CASES[name]
        if dtype != torch.float32:
            if not chosen.halves:
                continue
            chosen = replace(chosen, way=replace(chosen.way, learning_rate=RATE_OF_HALVES))
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
        more[word] = {"cpu": [here, norms[0]], "device": [there, norms[1]]}
    return Found(tuple(figures), more=more)


def skipped_step(place: Place) -> Found:
    """In float16 a step whose gradients overflow changes no weight and halves the loss scale."""
    chosen, scale = CASES["lora"], 2.0**40
    run = trained_on(place, chosen, torch.float16, place.device, loss_scale=scale)
    rows = windows(place, run.model.config.vocab_size, packed=False, accumulation=1)
    before = {name: one.detach().clone() for name, one in run.parameters.items()}
    (step,) = run.go(rows[:1])
    changed = sum(int((before[name] != one).sum()) for name, one in run.parameters.items())
    assert not math.isfinite(step.grad_norm), f"no overflow: {step.grad_norm}"
    return Found((
        Figure("weights changed", changed, 0),
        Figure("loss scale off half", abs(run.recipe.scaler.get_scale() / scale - 0.5), 0),
    ))  # fmt: skip


CHECKS = (
    *(Check(f"training/{name}", partial(compare, name=name), 6) for name in CASES),
    Check("training/float16-overflow", skipped_step, 2),
)
