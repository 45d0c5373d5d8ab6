"""Loads a base with packed linear layers: from plain files, from bitsandbytes' or the cache."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from loractl.errors import ModelError
from loractl.models import packer, prequantized
from loractl.models.base_directory import shards
from loractl.models.packed_cache import Entry
from loractl.models.packed_names import quantizable
from loractl.models.packer import Packing
from loractl.models.torch_dtypes import DTYPES
from loractl.quant.kinds import Quantization
from loractl.quant.linear import PackedLinear, packed_layers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Fingerprint = Callable[[], str]


def load(
    directory: Path,
    model_class: Any,
    config: "PreTrainedConfig",
    work: Packing,
    *,
    chosen: Quantization | None,
    fingerprint: Fingerprint | None,
) -> tuple["PreTrainedModel", Mapping[str, Any]]:
    """The model in a directory, and what transformers says of its tensors.

    `chosen`: how to pack plain files; with a fingerprint of these, what was packed is kept. Raises
    ModelError, and what transformers raises.
    """
    numbers = DTYPES[chosen.dtype] if chosen else work.dtype
    tensors = packer.tensors_of(shards(directory), numbers)
    own = prequantized.kind_in_files(directory)
    if own is not None and chosen is not None and chosen.kind != own:
        raise ModelError(
            f"model {work.name}: its files are quantized as {own}, and model.quantization is"
            f" {chosen.kind}; remove model.quantization, or name the base it was quantized from"
        )
    entry = None
    if own is None and chosen is not None and fingerprint is not None:
        entry = Entry.of(fingerprint(), chosen)
        kept = entry.tensors()
        tensors = packer.with_packed(tensors, kept, numbers)
        entry = None if kept else entry
    work.chosen = chosen if own is None else None
    for holder in (config, config.get_text_config()):  # or transformers would ask for its library
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config
    model, found = packer.load(model_class, config, tensors, work)
    _require_whole(model, work)
    model.config._name_or_path = str(directory)
    if (generation := packer.generation_config_of(directory)) is not None:
        model.generation_config = generation
    layers = packed_layers(model)
    if entry is not None and work.keys.keys() == layers.keys():
        stored = {work.keys[path]: layer.packed for path, layer in layers.items()}
        entry.keep(
            ((key, replace(one, dtype=numbers)) for key, one in stored.items()),
            sum(one.codes.nbytes for one in stored.values()),
        )
    if work.dense:
        packer.unpack_(model, numbers, work.dtype)
    return model, found


def _require_whole(model: nn.Module, work: Packing) -> None:
    if work.faults:
        raise ModelError(
            f"model {work.name}: the shape of {work.faults[0]} differs from its config.json"
        )
    if not packed_layers(model):
        raise ModelError(
            f"model {work.name}: found no plain linear layers, which alone can be quantized; remove"
            " model.quantization"
        )


def pack_(model: "PreTrainedModel", chosen: Quantization, *, dense: bool) -> None:
    """Pack the linear layers of a model that had to be unpacked as a whole first."""
    for path in quantizable(model, chosen):
        layer: Any = model.get_submodule(path)
        if dense:
            layer.weight.data = chosen.rounded(layer.weight).to(layer.weight.dtype)
            continue
        packed = replace(chosen.pack(layer.weight), dtype=layer.weight.dtype)
        model.set_submodule(path, PackedLinear(packed, layer.bias))
