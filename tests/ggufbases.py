"""Tiny models that fill whole blocks of q8_0, of every kind that can be written as GGUF."""

from pathlib import Path

import torch
import transformers
from transformers import PreTrainedTokenizerFast

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 256}
LLAMA3 = {**ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0}  # fmt: skip
LONG = {**ROPE, "rope_type": "longrope", "short_factor": [1 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)]}  # fmt: skip
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
BASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", SHAPE),
    "llama-tied": ("Llama", {**SHAPE, "tie_word_embeddings": True}),
    "llama-biased": ("Llama", {**SHAPE, "attention_bias": True, "mlp_bias": True}),
    "llama-3.1": ("Llama", {**SHAPE, "rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {**SHAPE, "head_dim": 32, "sliding_window": 40}),
    "qwen2": ("Qwen2", {**SHAPE, "rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 4.0}}),
    "qwen3": ("Qwen3", {**SHAPE, "head_dim": 32}),
    "gemma2": ("Gemma2", {**SHAPE, "head_dim": 32, "query_pre_attn_scalar": 32,
                          "sliding_window": 8}),
    "gemma3": ("Gemma3Text", {**SHAPE, "head_dim": 32, "query_pre_attn_scalar": 32,
                              "num_hidden_layers": 7, "sliding_window": 8,
                              "rope_parameters": GEMMA3}),
    "phi3": ("Phi3", {**SHAPE, "pad_token_id": 0, "sliding_window": 48}),
    "phi3-long": ("Phi3", {**SHAPE, "pad_token_id": 0, "rope_parameters": LONG,
                           "original_max_position_embeddings": 256}),
}  # fmt: skip
UNUSED_ROWS = 4


def save(directory: Path, name: str, tokenizer: PreTrainedTokenizerFast, **changes: object) -> Path:
    """Write a random model whose norms and biases are random too, and the tokenizer."""
    kind, shape = BASES[name]
    config = getattr(transformers, f"{kind}Config")(
        **{
            "vocab_size": len(tokenizer) + UNUSED_ROWS,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            **shape,
            **changes,
        }
    )
    torch.manual_seed(0)
    model_class = {"Gemma3Text": "Gemma3ForCausalLM"}.get(kind, f"{kind}ForCausalLM")
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
