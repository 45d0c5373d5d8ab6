"""Where generation stops, in the files of a model: the eos list of generation_config.json, which
transformers, vLLM and converters read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loractl.artifacts import files

NAME = "generation_config.json"
ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")


def listed_ends(directory: Path) -> list[int]:
    """The ids that a model's generation_config.json lists, or its config.json if it has none."""
    found = _read(directory).get("eos_token_id")
    return [i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int)]


def add_ends(directory: Path, ends: Sequence[int]) -> None:
    """Let generation with the model in this directory stop at these tokens too."""
    listed = listed_ends(directory)
    if new := [end for end in dict.fromkeys(ends) if end not in listed]:
        content = _read(directory) | {"eos_token_id": [*listed, *new]}
        files.write_json(directory / NAME, content)


def _read(directory: Path) -> dict[str, Any]:
    """The content of generation_config.json; without one, what transformers would put there."""
    if (directory / NAME).is_file():
        return files.read_json(directory / NAME)
    config = directory / "config.json"
    content = files.read_json(config) if config.is_file() else {}
    inner = content.get("text_config")
    content = {**(inner if isinstance(inner, dict) else {}), **content}
    return {role: content[role] for role in ROLES if content.get(role) is not None}
