"""Adapter directories in PEFT's layout: write ours, read anyone's.

Tensors have PEFT's names (`names`). Beside adapter_config.json (`config`) are the chat template and
loractl.json, which PEFT ignores.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loractl.artifacts import files
from loractl.artifacts.peft import adalora_files, token_indices
from loractl.artifacts.peft import config as peft_config
from loractl.artifacts.peft.names import MAGNITUDE, STARTS, SUFFIXES
from loractl.artifacts.run import checkpoint
from loractl.dtypes import WIDTHS
from loractl.errors import ArtifactError
from loractl.lora.ranks import RankSpec
from loractl.models.base_directory import is_inside
from loractl.quant.kinds import Quantization

WEIGHTS, CONFIG, ABOUT, TEMPLATE = (
    "adapter_model.safetensors", "adapter_config.json", "loractl.json", "chat_template.jinja",
)  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An adapter read from a directory: settings and tensors, not yet checked against a model."""

    directory: Path
    spec: RankSpec
    tensors: dict[str, Tensor]  # by PEFT's names
    base: str | None  # base_model_name_or_path; absolute if it is a path that was found
    about: dict[str, Any]  # loractl.json, empty for adapters from other tools
    chat_template: str | None
    formula: str = "lora"  # or dora
    has_starts: bool = False  # whether A and B are relative to their initial values
    whole: tuple[str, ...] = ()  # modules_to_save
    parameters: tuple[str, ...] = ()  # target_parameters: fused experts
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # trainable_token_indices

    def suffixes(self, kind: str) -> tuple[str, ...]:
        """The suffixes of a module's tensor names, those of A before those of B."""
        starts = STARTS[kind] if self.has_starts else ()
        return (*SUFFIXES[kind], *starts, *([MAGNITUDE] if self.formula == "dora" else []))

    @property
    def own_tokens(self) -> set[int]:
        """The tokens that have rows of their own."""
        return {index for indices in self.rows.values() for index in indices}

    @property
    def trained_on(self) -> str | None:
        """The fingerprint of the base it was trained on, if loractl.json has it."""
        base = self.about.get("base")
        found = base.get("fingerprint") if isinstance(base, dict) else None
        return found if isinstance(found, str) else None

    @property
    def dtype(self) -> str | None:
        """The dtype its base was trained in, if loractl.json has it."""
        found = self.about.get("dtype")
        return found if found in WIDTHS else None

    @property
    def quantization(self) -> Quantization | None:
        """How the base it was trained on was packed, if loractl.json says that it was."""
        return Quantization.recorded(self.about.get("quantization"), self.dtype)

    @property
    def ends(self) -> tuple[str, ...] | None:
        """The tokens trained as the end of an answer, if loractl.json has them."""
        found = self.about.get("ends")
        if not isinstance(found, list) or not all(isinstance(end, str) for end in found):
            return None
        return tuple(found)

    @property
    def brings_tokenizer(self) -> bool:
        """Whether it has a tokenizer of its own; what trainers save beside it often is one."""
        return (self.directory / "tokenizer.json").is_file()


def write(
    directory: Path,
    tensors: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    chat_template: str | None,
) -> None:
    """Write an adapter's files into a directory that exists."""
    files.write_tensors(directory / WEIGHTS, {name: t.cpu() for name, t in tensors.items()})
    files.write_json(directory / CONFIG, config)
    files.write_json(directory / ABOUT, about)
    if chat_template:
        (directory / TEMPLATE).write_text(chat_template, encoding="utf-8")


def find(path: Path) -> Path:
    """The adapter directory for a path: itself, a checkpoint, or a run's final adapter."""
    if (path / CONFIG).is_file() or (path / WEIGHTS).is_file():
        return path
    if (path / "adapter" / CONFIG).is_file():
        return path / "adapter"
    if not path.is_dir():
        raise ArtifactError(
            f"{path}: no such directory, expected an adapter, a run or a checkpoint"
        )
    if (path / "model").is_dir():
        raise ArtifactError(
            f"{path}: a run with method: full has no adapter; its model is in {path / 'model'}"
        )
    if (path / "checkpoints").is_dir():
        raise ArtifactError(
            f"{path}: the run has no final adapter yet; finish it with train --resume, or use one"
            " of its checkpoints"
        )
    if (path / "adapter_model.bin").is_file():
        raise ArtifactError(
            f"{path / 'adapter_model.bin'}: a pickle, which can run code and is not read; convert"
            " it to safetensors"
        )
    raise ArtifactError(
        f"{path}: {CONFIG} not found; this is not an adapter, run or checkpoint directory"
    )


def read(path: Path) -> Adapter:
    """Read an adapter, a run's final one or a checkpoint. Raises ArtifactError naming the file."""
    directory = find(path)
    config = files.read_json(directory / CONFIG)
    is_adalora = config.get("peft_type") == "ADALORA"
    spec = None if is_adalora else peft_config.spec(directory / CONFIG, config)
    if (directory / checkpoint.MANIFEST).is_file() and (wrong := checkpoint.faults(directory)):
        raise ArtifactError(*wrong)
    where = directory / WEIGHTS
    if not where.is_file():
        is_pickle = (directory / "adapter_model.bin").is_file()
        why = "; adapter_model.bin is a pickle, which is not read; convert it to safetensors"
        raise ArtifactError(f"{where}: not found{why if is_pickle else ''}")
    tensors = files.read_tensors(where)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise ArtifactError(f"{where}: {name} holds values that are not finite (NaN or Inf)")
    if spec is None:
        config, tensors = adalora_files.folded(directory / CONFIG, config, tensors)
        spec = peft_config.spec(directory / CONFIG, config)
    has_starts = peft_config.starts_at_parts(config)
    if has_starts and not any(".lora_A0." in n or n.endswith("_A0") for n in tensors):
        raise ArtifactError(
            f"{directory / CONFIG}: init_lora_weights is {json.dumps(config['init_lora_weights'])},"
            " which is not supported: it changes the base, by tensors that are not in this adapter"
        )
    about = directory / ABOUT
    found = Adapter(
        directory=directory,
        spec=spec,
        tensors=tensors,
        base=find_base(directory, config.get("base_model_name_or_path")),
        about=files.read_json(about) if about.is_file() else {},
        chat_template=find_template(directory),
        formula="dora" if config.get("use_dora") else "lora",
        has_starts=has_starts,
        whole=tuple(config.get("modules_to_save") or ()),
        parameters=tuple(config.get("target_parameters") or ()),
        rows=token_indices.read(directory / CONFIG, config),
    )
    checkpoint.require_published(directory)
    return found


def find_template(directory: Path) -> str | None:
    """The chat template stored in a directory, in either of its two places."""
    path, config = directory / TEMPLATE, directory / "tokenizer_config.json"
    if path.is_file():
        return files.read_text(path)
    found = files.read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(found, list):  # several by name, of which this is the one without tools
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def copy_tokenizer(adapter: Adapter, directory: Path) -> None:
    """Put the tokenizer that an adapter brings, if any, in place of the one in a directory."""
    if not adapter.brings_tokenizer:
        return
    for name in TOKENIZER_FILES:
        path = adapter.directory / name
        (directory / name).unlink(missing_ok=True)
        if not path.is_file():
            continue
        if not is_inside(path, adapter.directory):  # a stranger's link might point at a secret
            raise ArtifactError(f"{path}: links to {path.resolve()}, outside the adapter; copy it")
        shutil.copyfile(path, directory / name)


def find_base(directory: Path, name: str | None) -> str | None:
    """The base that an adapter names. A relative path counts from the working directory, else from
    the adapter's own or one above it: a run is usually below the directory it was started in."""
    if not name:
        return name
    path = Path(name).expanduser()
    for place in (Path(), directory.absolute(), *directory.absolute().parents):
        found = place / path
        if (found / "config.json").is_file() or (found.is_file() and found.suffix == ".gguf"):
            return os.path.abspath(found)
    return name
