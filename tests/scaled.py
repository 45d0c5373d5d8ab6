"""Tiny models of architectures that scale or cap their logits."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import SHAPE

IDS = {"vocab_size": 340, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SCALED: dict[str, tuple[dict[str, Any], float, float | None]] = {
    "cohere": ({"logit_scale": 0.25}, 0.25, None),
    "granite": ({"logits_scaling": 8.0}, 0.125, None),
    "hyperclovax": ({"logits_scaling": 8.0}, 8.0, None),
    "gemma2": ({"head_dim": 16, "final_logit_softcapping": 30.0}, 1.0, 30.0),
    "gemma3_text": ({"head_dim": 16, "final_logit_softcapping": 5.0}, 1.0, 5.0),
    "recurrent_gemma": ({"logits_soft_cap": 7.0, "block_types": ["attention"]}, 1.0, 7.0),
}
"""Settings of architectures that change their logits, and the scale and cap they mean."""


def scaled(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model whose logits reach some tens, so that a cap or a scale shows."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SHAPE, **IDS, **SCALED[name][0]})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    return model.to(dtype).eval()
