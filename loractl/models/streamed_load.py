"""Loads a model whose layers stay on disk: plain, packed by bitsandbytes, or packed once and kept.

What lies outside the layers (embedding, norm, head) is loaded; the tensors of the layers are views
of a stream's buffers, into which their files are read when a layer computes.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loractl.errors import ModelError, StorageError
from loractl.models import packer, prequantized
from loractl.models.base_directory import shards
from loractl.models.layer_stream import Stream
from loractl.models.packed_cache import Entry
from loractl.models.packed_names import quantizable
from loractl.models.packer import Packing
from loractl.models.stored import Stored, tensors_in
from loractl.models.streamed_layers import install_, layer_of, stream_of
from loractl.models.torch_dtypes import DTYPES
from loractl.ops.packed import Packed
from loractl.quant.kinds import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LARGE = re.compile(r"(weight|bias|absmax|SCB)$")
"""How the names end of what passes through the stream; the rest are tables and descriptions."""


@dataclass(frozen=True)
class _Passing:
    """A tensor of a layer, as transformers' loader asks for it: its place in the stream."""

    stream: Stream
    number: int
    name: str
    stored: Stored

    def get_dtype(self) -> str:
        return self.stored.get_dtype()

    def get_shape(self) -> list[int]:
        return self.stored.get_shape()

    def __getitem__(self, whole: Any) -> Tensor:
        return self.read()

    def read(self) -> Tensor:
        return self.stream.view(self.number, self.name)


def load(
    directory: Path,
    model_class: Any,
    config: "PreTrainedConfig",
    work: Packing,
    *,
    chosen: Quantization | None,
    fingerprint: Callable[[], str] | None,
) -> tuple["PreTrainedModel", Mapping[str, Any]]:
    """The model, and what transformers says of its tensors. The dense model is never in memory.

    `chosen`: how its linear layers are packed; this is done once and kept on disk. Raises
    ModelError, StorageError, and what transformers raises.
    """
    stored = {name: one for shard in shards(directory) for name, one in tensors_in(shard).items()}
    numbers = DTYPES[chosen.dtype] if chosen else work.dtype
    if chosen is not None and prequantized.kind_in_files(directory) is None:
        names = _names_to_pack(model_class, config, chosen, stored)
        assert fingerprint is not None
        entry = Entry.of(fingerprint(), chosen)
        kept = entry.tensors() or _pack(entry, names, stored, chosen)
        stored = {name: one for name, one in stored.items() if name not in names} | kept
    passing = {name: one for name, one in stored.items() if LARGE.search(name)}
    stream = stream_of(passing, work.dtype)
    values: dict[str, Any] = dict(stored)
    for name in passing:
        if (number := layer_of(name)) is not None:
            values[name] = _Passing(stream, number, name, stored[name])
    work.chosen = None  # all that is packed comes packed
    tensors = packer.with_packed(values, values, numbers)
    model, found = packer.load(model_class, config, tensors, work)
    install_(model, stream)
    return model, found


def _names_to_pack(
    model_class: Any, config: "PreTrainedConfig", chosen: Quantization, stored: Mapping[str, Stored]
) -> set[str]:
    """The names in the files of the weights to pack. Raises ModelError if they are others."""
    with torch.device("meta"):
        skeleton: PreTrainedModel = model_class(config)
    names = {f"{path}.weight" for path in quantizable(skeleton, chosen)}
    if unknown := sorted(names - stored.keys()):
        raise ModelError(
            f"model.offload: {unknown[0]} is not in the files as the model needs it, so it cannot"
            " be streamed; set model.offload: none"
        )
    return names


def _pack(
    entry: Entry, names: set[str], stored: Mapping[str, Stored], chosen: Quantization
) -> dict[str, Stored]:
    """Pack one weight after another into the cache, from which they are streamed."""

    def packed() -> Iterator[tuple[str, Packed]]:
        for name in sorted(names, key=lambda one: (layer_of(one) or 0, one)):
            yield name, chosen.pack(stored[name].read())

    entry.keep(packed(), sum(math.prod(stored[name].shape) for name in names))
    if kept := entry.tensors():
        return kept
    raise StorageError(
        f"{entry.place}: the quantized layers cannot be kept there, and model.offload reads them"
        " from disk; free space there, or set model.offload: none"
    )
