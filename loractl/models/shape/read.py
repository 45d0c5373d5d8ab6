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
from loractl.models.shape.sizes import SIZES
from loractl.models.shape.types import ModelShape, Sizes


def named(size: str) -> ModelShape:
    """The model that a size stands for: one of `sizes.SIZES`."""
    return from_config(SIZES[size].config, where=size)


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
