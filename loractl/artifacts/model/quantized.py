"""A base as a directory that bitsandbytes has quantized, by its bytes: transformers and we load it
as such, without packing it again."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loractl.artifacts import files
from loractl.artifacts.model.merge import COPIED, NOT_COPIED
from loractl.artifacts.model.plan import is_tied
from loractl.models.base_directory import INDEX
from loractl.models.load import Source, head_name, load_model
from loractl.models.torch_dtypes import DTYPES
from loractl.quant import bitsandbytes_files
from loractl.quant.linear import PackedLinear, packed_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARD_BYTES = 1 << 30


def write(directory: Path, source: Source) -> None:
    """Write a base as its `quantization` packs it. Raises ModelError, ArtifactError."""
    chosen = source.quantization
    assert chosen is not None, "the source says how it is packed"
    model = load_model(source, dtype=DTYPES[chosen.dtype], device=torch.device("cpu"))
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(_in_shards(model), start=1):
        name = f"model-{number:05}.safetensors"
        files.write_tensors(directory / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files.write_json(directory / INDEX, index)
    for path in sorted(source.directory.iterdir()):
        if path.is_file() and path.suffix in COPIED and path.name not in NOT_COPIED:
            shutil.copyfile(path, directory / path.name)
    config: dict[str, Any] = files.read_json(source.directory / "config.json")
    config["dtype"] = chosen.dtype
    config.pop("torch_dtype", None)
    dense = [] if chosen.head else [head_name(model) or "lm_head"]
    config["quantization_config"] = bitsandbytes_files.config_of(chosen.kind, chosen.dtype, dense)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _in_shards(model: "PreTrainedModel") -> Iterator[dict[str, Tensor]]:
    """Every tensor of a model by its name in files."""
    packed = packed_layers(model)
    head = f"{head_name(model)}.weight"
    found: dict[str, Tensor] = {}
    size = 0
    for name, tensor in _named(model, packed):
        if name == head and is_tied(model):
            continue
        found[name] = tensor.detach().contiguous()
        size += tensor.nbytes
        if size >= SHARD_BYTES:
            yield found
            found, size = {}, 0
    if found:
        yield found


def _named(
    model: "PreTrainedModel", packed: dict[str, PackedLinear]
) -> Iterator[tuple[str, Tensor]]:
    yield from model.state_dict().items()
    for path, layer in packed.items():
        yield from bitsandbytes_files.tensors_of(layer.packed, f"{path}.weight").items()
