"""Which tensors of a model's files belong to which layer, and a model whose layers pass through a
stream."""

import re
from collections.abc import Mapping

import torch
from torch import nn

from loractl.errors import ModelError
from loractl.models.layer_stream import Arrival, Stream, laid_out
from loractl.models.stored import DTYPES, Stored
from loractl.quant.linear import packed_layers
from loractl.records import ARRIVE

NUMBER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
"""What precedes the number of a decoder layer in the names of tensors."""


def layer_of(name: str) -> int | None:
    """The number of the decoder layer that a tensor belongs to; None: to none."""
    found = NUMBER.search(name)
    return int(found[1]) if found else None


def stream_of(stored: Mapping[str, Stored], dtype: torch.dtype) -> Stream:
    """A stream of all layers; weights in floating point come in `dtype`, parts of packed weights as
    they are stored."""
    packed = {name.removesuffix(".absmax") for name in stored if name.endswith(".absmax")}
    packed |= {f"{name.removesuffix('SCB')}weight" for name in stored if name.endswith(".SCB")}
    layers: dict[int, dict[str, tuple[Stored, torch.dtype]]] = {}
    for name, one in stored.items():
        if (number := layer_of(name)) is None:
            continue
        is_plain = one.dtype in ("F32", "F16", "BF16", "F64")
        is_part = name.endswith(".SCB") or any(name.startswith(f"{one}.") for one in packed)
        kept = dtype if is_plain and not is_part else DTYPES[one.dtype]
        layers.setdefault(number, {})[name] = one, kept
    return Stream([laid_out(layers[number]) for number in sorted(layers)])


def install_(model: nn.Module, stream: Stream) -> None:
    """Let each decoder layer of a model come to memory before it computes.

    Its frozen weights must be views of the stream's buffers already. Raises ModelError if one is
    not: what transformers converts while it loads cannot be streamed.
    """
    layers = decoder_layers(model)
    if len(layers) != len(stream.layers):
        raise ModelError(
            f"model.offload: {len(stream.layers)} layers in the files, {len(layers)} in the model"
        )
    for number, layer in enumerate(layers):
        codes = {f"{name}.codes": one.packed.codes for name, one in packed_layers(layer).items()}
        for name, tensor in {**layer.state_dict(), **codes}.items():
            if not stream.holds(tensor):
                raise ModelError(
                    f"model.offload: {name} of layer {number} is not in the files as the model"
                    " needs it, so it cannot be streamed; set model.offload: none"
                )
        arrival = Arrival(stream, number)
        # Also the children: gradient checkpointing computes a layer again without its own hooks.
        for module in (layer, *layer.children()):
            module.register_forward_pre_hook(arrival)
        for module in layer.modules():
            setattr(module, ARRIVE, arrival)  # for those who read its weight, as lora/dense.py


def streams(model: nn.Module) -> bool:
    """Whether the layers of a model pass through a stream."""
    return any(hasattr(layer, ARRIVE) for layer in decoder_layers(model))


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a causal LM, in order."""
    found = {
        int(match[1]): module
        for path, module in model.named_modules()
        if (match := re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)", path))
    }
    return [found[number] for number in sorted(found)]
