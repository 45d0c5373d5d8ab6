"""Every variant on every kind of layer and architecture: it starts as nothing, and PEFT agrees.

PEFT holds every cell: what is published is a plain LoRA or DoRA adapter, however it started.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from loractl.artifacts import adapter as adapters
from loractl.artifacts import peftconfig
from loractl.lora.inject import adaptable, inject_, merge_, remove_
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import RankSpec, resolve
from tests.conftest import ARCHITECTURES

Make = Callable[..., Path]
Logits = Callable[..., Tensor]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning"),  # GPT-2's head
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]
VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"formula": "dora"},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "dora-pissa-rslora": {"formula": "dora", "init": "pissa", "scaling": "rslora"},
}
variants = pytest.mark.parametrize("variant", VARIANTS)
architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


def plain(base: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return model.eval()


def inject(
    model: PreTrainedModel, variant: str, base: Path
) -> tuple[dict[str, LoraLayer], dict[str, Any]]:
    """Adapters on every linear layer, the embedding and the head; and adapter_config.json."""
    options = dict(VARIANTS[variant])
    scaling = options.pop("scaling", "standard")
    kinds = {name: kind for name, kind in adaptable(model).items() if "wpe" not in name}
    first = next(name for name, kind in kinds.items() if kind != "embedding")
    spec = RankSpec(
        4, 6, target_modules=list(kinds), scaling=scaling,
        rank_pattern={first: 2}, alpha_pattern={first: 5},
    )  # fmt: skip
    ranks = resolve(spec, kinds)
    names = [name for name, _ in model.named_modules()]
    config = peftconfig.content(
        ranks, names, spec=spec, kinds=kinds, dropout=0.0, base=str(base), **options
    )
    return inject_(model, ranks, **options), config


def train_(layers: dict[str, LoraLayer]) -> None:
    """Move everything that is trained, about as far as a run does."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in adapters.parameters(layers).values():
            parameter.add_(torch.randn_like(parameter) * (0.1 * parameter.std() + 0.02))


def write_final(layers: dict[str, LoraLayer], config: dict[str, Any], directory: Path) -> Path:
    directory.mkdir()
    plain_config = peftconfig.doubled(config) if peftconfig.starts_at_parts(config) else config
    adapters.write(
        directory, adapters.plain_tensors(layers), config=plain_config, about={}, chat_template=None
    )
    return directory


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest difference over max(1, max |logit|)."""
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


@variants
@architectures
def test_a_variant_starts_as_nothing_and_all_its_forms_agree(
    architecture: str,
    variant: str,
    base: Make,
    logits: Logits,
    peft_model: Callable[..., Any],
    tmp_path: Path,
) -> None:
    where = base(architecture)
    model = plain(where)
    before = logits(model)
    layers, config = inject(model, variant, where)
    assert torch.equal(logits(model), before), "no no-op at the start"
    train_(layers)
    expected = logits(model)
    assert worst(expected, before) > 1e-2, "nothing moved"
    final = write_final(layers, config, tmp_path / "adapter")
    read = plain(where)
    adapters.load_(read, adapters.read(final))
    assert worst(logits(read), expected) < 1e-5
    assert worst(logits(peft_model(where, final)), expected) < 1e-5
    merge_(read)
    assert worst(logits(read), expected) < 1e-5
    remove_(model)
    assert torch.equal(logits(model), before)
