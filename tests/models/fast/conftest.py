"""What the tests of the fast layers share: tiny models of each family, adapters, distances."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.records import Batch

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 99, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 4},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "SmolLM3": {"no_rope_layers": [1, 0, 1]},
    "Granite": {
        "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.3,
    },
    "Gemma": {"head_dim": 16},
    "Gemma2": {"head_dim": 16, "sliding_window": 4, "attn_logit_softcapping": 5.0},
    "Gemma3": {"head_dim": 16, "sliding_window": 4},
}  # fmt: skip
families = pytest.mark.parametrize("name", MODELS)


def model_of(name: str, **changes: Any) -> Any:
    """A tiny random model, large enough in its weights that a wrong formula shows."""
    config_class = getattr(transformers, f"{name}{'Text' if name == 'Gemma3' else ''}Config")
    config = config_class(**{**SHAPE, **MODELS[name], **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")._from_config(
        config, attn_implementation="eager"
    )
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in path else 1.0))
    return model.eval()


def adapt_(model: nn.Module, **options: Any) -> None:
    """Adapters of random A and B on all linear layers, or as the options say."""
    formula, dropout = options.pop("formula", "lora"), options.pop("dropout", 0.0)
    spec = RankSpec(**{"rank": 4, "alpha": 8, "target_modules": "all-linear", **options})
    layers = inject_(
        model, resolve(spec, adaptable(model), head="lm_head"), formula=formula, dropout=dropout
    )
    with torch.no_grad():
        for layer in layers.values():
            layer.B.normal_(std=0.1)
            if formula == "adalora":
                layer.E.normal_()  # type: ignore[operator]


BATCH = ((5, 9, 3), (11,), (6, 6))


def hidden_and_gradients(
    run: Callable[[Batch], Tensor], model: nn.Module, batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    hidden = run(batch)
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))
    (hidden.float() * weights).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return hidden.detach(), found


def off(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())
