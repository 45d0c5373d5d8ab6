"""Models that are known by their size alone: `--model 8B` needs no file of the model."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """A model on the hub, and what of its config.json decides its shape."""

    hub: str
    config: dict[str, Any]


def _llama(hub: str, hidden: int, inner: int, layers: int, heads: int, **more: Any) -> Size:
    shape = {
        "model_type": "llama", "vocab_size": 32000, "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
    }  # fmt: skip
    return Size(hub, {**shape, **more})


def _qwen(hub: str, hidden: int, inner: int, layers: int, heads: int, kv: int, **more: Any) -> Size:
    shape = {
        "model_type": "qwen2", "vocab_size": 152064, "max_position_embeddings": 32768,
        "num_key_value_heads": kv,
    }  # fmt: skip
    return _llama(f"Qwen/{hub}", hidden, inner, layers, heads, **{**shape, **more})


LLAMA_3 = {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072}
SMALL = {"vocab_size": 151936, "tie_word_embeddings": True}  # the small ones of Qwen

SIZES: dict[str, Size] = {
    "0.5B": _qwen("Qwen2.5-0.5B-Instruct", 896, 4864, 24, 14, 2, **SMALL),
    "1B": _llama("meta-llama/Llama-3.2-1B-Instruct", 2048, 8192, 16, 32, head_dim=64,
                 tie_word_embeddings=True, **LLAMA_3),
    "1.5B": _qwen("Qwen2.5-1.5B-Instruct", 1536, 8960, 28, 12, 2, **SMALL),
    "3B": _qwen("Qwen2.5-3B-Instruct", 2048, 11008, 36, 16, 2, **SMALL),
    "4B": _qwen("Qwen3-4B", 2560, 9728, 36, 32, 8, model_type="qwen3", head_dim=128,
                **{**SMALL, "max_position_embeddings": 40960}),
    # Llama 2 (arXiv 2307.09288) and, for 30B, LLaMA (arXiv 2302.13971, table 2)
    "7B": _llama("meta-llama/Llama-2-7b-hf", 4096, 11008, 32, 32, max_position_embeddings=4096),
    "8B": _llama("meta-llama/Llama-3.1-8B-Instruct", 4096, 14336, 32, 32, **LLAMA_3),
    "13B": _llama("meta-llama/Llama-2-13b-hf", 5120, 13824, 40, 40, max_position_embeddings=4096),
    "14B": _qwen("Qwen2.5-14B-Instruct", 5120, 13824, 48, 40, 8),
    "30B": _llama("huggyllama/llama-30b", 6656, 17920, 60, 52, max_position_embeddings=2048),
    "32B": _qwen("Qwen2.5-32B-Instruct", 5120, 27648, 64, 40, 8),
    "70B": _llama("meta-llama/Llama-2-70b-hf", 8192, 28672, 80, 64, num_key_value_heads=8,
                  max_position_embeddings=4096),
    "72B": _qwen("Qwen2.5-72B-Instruct", 8192, 29568, 80, 64, 8),
}  # fmt: skip
"""Smallest first."""
