"""What the tests of merges share: a merge, its tensors and files, and a base that is changed."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loractl.artifacts.model import merge as merged
from loractl.artifacts.peft.adapter import read
from loractl.artifacts.peft.attach import load_
from loractl.models.load import load_model, locate

Make = Callable[..., Path]
Logits = Callable[..., Tensor]

MODEL = "model.safetensors"
LOW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def merge(base: Path, adapter: Path, out: Path, dtype: torch.dtype | None = None) -> merged.Written:
    out.mkdir()
    return merged.write(out, locate(str(base)), read(adapter), dtype=dtype)


def with_adapter(base: Path, adapter: Path) -> Any:
    """base + adapter in float32."""
    model = load_model(locate(str(base)), dtype=torch.float32, device=torch.device("cpu"))
    load_(model, read(adapter))
    return model


def tensors(directory: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for path in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def tree(directory: Path) -> dict[str, str]:
    """Hash and mode of every file."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        + oct(path.stat().st_mode)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def assert_close(found: Tensor, expected: Tensor) -> None:
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= bound


def resave(base: Path, directory: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a base whose tensors are changed."""
    shutil.copytree(base, directory)
    content = load_file(directory / MODEL)
    change(content)
    save_file(content, directory / MODEL, metadata={"format": "pt"})
    return directory
