"""Every cell of variant x kind of layer x architecture: it starts as nothing, and its forms agree.

The cells that do not exist are those of FORMULAS: DoRA and AdaLoRA do not reach fused experts. PEFT
is a judge of every other cell, since what is published is a plain LoRA or DoRA adapter, however it
was trained: its own AdaLoRA has no embeddings, and its PiSSA and OLoRA another base.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from loractl.artifacts import files
from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import attach
from loractl.artifacts.peft import names as peft_names
from loractl.engine import save
from loractl.lora import algebra
from loractl.lora.adalora import Budget, Smoothing
from loractl.lora.inject import FORMULAS, adaptable, inject_, merge_, remove_
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import RankSpec, resolve
from tests.tiny import ARCHITECTURES

Make = Callable[..., Path]
Logits = Callable[..., Tensor]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning"),  # GPT-2's head
    # PEFT reads the patterns for fused experts too, but says that it does not
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "gaussian-rslora": {"init": "gaussian", "scaling": "rslora"},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "dora": {"formula": "dora"},
    "dora-pissa-rslora": {"formula": "dora", "init": "pissa", "scaling": "rslora"},
    "adalora": {"formula": "adalora"},
}
KINDS: dict[str, set[str]] = {
    **dict.fromkeys(ARCHITECTURES, {"linear", "embedding"}),
    "gpt2": {"conv1d", "linear", "embedding"},  # linear: its head, tied to the embedding
    "mixtral": {"linear", "embedding", "experts"},
}
BUDGET = Budget(initial=8, target=4, warmup=1, final=1, total=9, every=1)
SAMPLE = ("llama-tied", "gpt2", "mixtral")
"""Between them they have every kind of layer; of the others one variant is enough by default."""
CELLS = [
    pytest.param(
        variant,
        kind,
        architecture,
        id=f"{variant}-{kind}-{architecture}",
        marks=[] if variant == "dora-pissa-rslora" or architecture in SAMPLE else pytest.mark.slow,
    )
    for architecture in ARCHITECTURES
    for kind in sorted(KINDS[architecture])
    for variant, options in VARIANTS.items()
    if kind in FORMULAS[options.get("formula", "lora")]
]


def plain(base: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return model.eval()


def spec_of(model: PreTrainedModel, variant: str, kind: str) -> tuple[RankSpec, dict[str, str]]:
    """Every layer of a kind, but for positions; ranks and alphas differ where they may."""
    kinds = adaptable(model)
    targets = [n for n, k in kinds.items() if k == kind and "wpe" not in n and "embed_pos" not in n]
    scaling = VARIANTS[variant].get("scaling", "standard")
    spec = RankSpec(4, 6, target_modules=targets, scaling=scaling)
    if VARIANTS[variant].get("formula") != "adalora":
        spec = replace(spec, rank_pattern={targets[0]: 2}, alpha_pattern={targets[0]: 5})
    return spec, kinds


def inject(model: PreTrainedModel, variant: str, kind: str, seed: int = 0) -> dict[str, LoraLayer]:
    options = {k: v for k, v in VARIANTS[variant].items() if k != "scaling"}
    spec, kinds = spec_of(model, variant, kind)
    return inject_(model, resolve(spec, kinds), seed=seed, **options)


def train_(layers: dict[str, LoraLayer]) -> None:
    """Move everything that is trained, about as far as a run does."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in peft_names.parameters(layers).values():
            parameter.add_(torch.randn_like(parameter) * (0.1 * parameter.std() + 0.02))
        for layer in layers.values():
            if hasattr(layer, "E"):
                layer.E.mul_(20)  # A and B are small
                layer.E[-1] = 0  # a triplet that is switched off


def trained_adapter(
    layers: dict[str, LoraLayer], variant: str, kind: str, base: Path
) -> save.TrainedAdapter:
    """The layers and what made them, as a session gathers them."""
    model = plain(base)
    spec, _ = spec_of(model, variant, kind)
    is_adalora = variant == "adalora"
    return save.TrainedAdapter(
        layers=layers,
        whole={},
        module_names=[name for name, _ in model.named_modules()],
        spec=spec,
        base=str(base),
        formula=VARIANTS[variant].get("formula", "lora"),
        init=VARIANTS[variant].get("init", "default"),
        dropout=0.0,
        about={},
        chat_template=None,
        allocation=save.Allocation(4, 2, BUDGET, Smoothing(), 0.5) if is_adalora else None,
    )


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest difference over max(1, max |logit|)."""
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("variant", "kind", "architecture"), CELLS)
def test_a_cell_starts_as_nothing_and_all_its_forms_agree(
    variant: str,
    kind: str,
    architecture: str,
    base: Make,
    logits: Logits,
    peft_model: Callable[..., Any],
    tmp_path: Path,
) -> None:
    where = base(architecture)
    model = plain(where)
    before = logits(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = inject(model, variant, kind)
    assert layers and torch.equal(logits(model), before), "no no-op at the start"
    train_(layers)
    expected = logits(model)
    assert worst(expected, before) > 1e-3, "nothing moved"

    trained = trained_adapter(layers, variant, kind, where)
    final, checkpoint = tmp_path / "adapter", tmp_path / "checkpoint"
    final.mkdir()
    save.write_final(final, trained)
    read = plain(where)
    attach.load_(read, adapters.read(final))
    assert worst(logits(read), expected) < 1e-5
    assert worst(logits(peft_model(where, final)), expected) < 1e-5

    resumed = plain(where)
    again = inject(resumed, variant, kind, seed=1)
    checkpoint.mkdir()
    save.write_checkpoint(checkpoint, trained)
    attach.restore_(again, files.read_tensors(checkpoint / adapters.WEIGHTS))
    assert torch.equal(logits(resumed), expected), "a checkpoint brings back other numbers"
    read_again = plain(where)
    attach.load_(read_again, adapters.read(checkpoint))
    assert worst(logits(read_again), expected) < 1e-5

    kept = algebra.merge_(model)
    assert worst(logits(model), expected) < 1e-5
    algebra.unmerge_(model, kept)
    assert torch.equal(logits(model), expected)
    remove_(model)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert torch.equal(logits(model), before)
    merge_(read)
    assert worst(logits(read), expected) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_half_precision_base_starts_as_nothing_to_the_last_bit(
    variant: str, base: Make, logits: Logits
) -> None:
    where = base("llama", "bfloat16")
    model = plain(where, torch.bfloat16)
    before = logits(model)
    for kind in ("linear", "embedding"):
        inject(model, variant, kind)
        assert torch.equal(logits(model), before)
        remove_(model)
