"""Make a model of random weights, about 100M parameters, in an architecture of its own.

python -m bench.other gpt2|phi --tokenizer DIR --out DIR [--dtype T] [--width N] [--layers N]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PhiConfig, PhiForCausalLM
from transformers import PreTrainedModel as Model


def gpt2(width: int, layers: int, ids: dict[str, Any]) -> Model:
    """Learned positions, LayerNorm, one product for q, k and v, Conv1D in place of Linear."""
    config = GPT2Config(
        n_embd=width, n_layer=layers, n_head=max(1, width // 64), n_positions=1024,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def phi(width: int, layers: int, ids: dict[str, Any]) -> Model:
    """Rotary on a part of each head, biases, attention and MLP beside each other."""
    config = PhiConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), max_position_embeddings=1024,
        tie_word_embeddings=True, **ids,
    )  # fmt: skip
    return PhiForCausalLM(config)


KINDS = {"gpt2": gpt2, "phi": phi}


def make(kind: str, tokenizer_of: str, out: Path, *, dtype: str, width: int, layers: int) -> int:
    """Write the model with its tokenizer into a directory; return its number of parameters."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    model = KINDS[kind](width, layers, ids)
    model.to(getattr(torch, dtype)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    asked = parser.parse_args()
    size = {"width": asked.width, "layers": asked.layers}
    count = make(asked.kind, asked.tokenizer, asked.out, dtype=asked.dtype, **size)
    print(json.dumps({"parameters": count}))


if __name__ == "__main__":
    main()
