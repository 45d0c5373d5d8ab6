"""config.json -> ModelShape, or the shape of a model given only its size. No torch.

The layout of each architecture is in `families`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loractl.dtypes import WIDTHS
from loractl.errors import ModelError
from loractl.models.shape.families import FAMILIES
from loractl.models.shape.types import ModelShape, Sizes

LLAMA = {"model_type": "llama", "vocab_size": 32000, "hidden_act": "silu"}

SIZES: dict[str, dict[str, Any]] = {
    # Llama 2 (arXiv 2307.09288) and, for 30B, LLaMA (arXiv 2302.13971, table 2)
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "max_position_embeddings": 4096},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
            "num_attention_heads": 40, "max_position_embeddings": 4096},
    "30B": {"hidden_size": 6656, "intermediate_size": 17920, "num_hidden_layers": 60,
            "num_attention_heads": 52, "max_position_embeddings": 2048},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 4096},
}  # fmt: skip  # fmt: skip


def named(size: str) -> ModelShape:
    """The Llama model of this size: 7B, 13B, 30B or 70B."""
    return from_config({**LLAMA, **SIZES[size]}, where=size)


def read(directory: Path) -> ModelShape:
    """The shape of the model in a directory, from its config.json. Raises ModelError."""
    path = directory if directory.suffix == ".json" else directory / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: not found; a base model has a config.json") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ModelError(f"{path}: expected a JSON object with model_type")
    return from_config(content, where=str(path))


def from_config(config: Mapping[str, Any], *, where: str) -> ModelShape:
    """The shape that a config.json describes; `where` names it in errors.

    Raises ModelError for an architecture whose layout is not in FAMILIES, and for a size that is
    missing or not a positive number: nothing is guessed.
    """
    architecture = config["model_type"]
    if architecture not in FAMILIES:
        raise ModelError(
            f"{where}: model_type {architecture}: its shape cannot be derived; supported:"
            f" {', '.join(sorted(FAMILIES))}; give a size instead: --model 7B"
        )
    shape = FAMILIES[architecture](Sizes(config, where))
    return replace(shape, stored_width=WIDTHS.get(config.get("dtype", config.get("torch_dtype"))))
