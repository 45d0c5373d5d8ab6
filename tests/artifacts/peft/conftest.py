"""What the tests of adapter files share: models with and without one, and what PEFT saves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from loractl.artifacts.peft.adapter import read
from loractl.artifacts.peft.attach import load_

Make = Callable[..., Path]
Logits = Callable[..., Tensor]
Change = Callable[[dict[str, Tensor]], object]

TIED = pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
"""What PEFT says whenever one of two tied layers is adapted."""


def plain(base: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model.eval()


def ours(base: Path, directory: Path) -> PreTrainedModel:
    model = plain(base)
    load_(model, read(directory))
    return model


def peft_saved(base: Path, directory: Path, **settings: Any) -> Tensor:
    """Save an adapter as PEFT does, A and B random; return its logits."""
    model = get_peft_model(plain(base), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
    model.save_pretrained(directory)
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(0, 300, (2, 16), generator=generator)
    with torch.no_grad():
        scores: Tensor = model(input_ids=ids, use_cache=False).logits
    return scores
