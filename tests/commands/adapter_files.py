"""Adapter files in the tests of `loractl adapters`: what they change, and models with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from loractl.artifacts.peft.adapter import WEIGHTS, read
from loractl.artifacts.peft.attach import load_
from loractl.artifacts.peft.updates import updates

TARGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {}),
    "conv1d": ("gpt2", {}),
    "embedding": ("llama", {"target_modules": ["embedding", "q_proj"]}),
}


def products(directory: Path) -> dict[str, Tensor]:
    return {name: update.factors.product() for name, update in updates(read(directory)).items()}


def assert_equal_products(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Relative, Frobenius, to 1e-4, module by module."""
    assert found.keys() == expected.keys()
    for name, product in expected.items():
        assert float((found[name] - product).norm() / product.norm()) < 1e-4, name


def ours(base: Path, directory: Path) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    load_(model, read(directory))
    return model


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def edited(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)
