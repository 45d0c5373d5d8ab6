"""Loads a base from a GGUF file, its linear layers in the blocks that the file has them in.

transformers 5.23 knows the names, and what llama.cpp's converter does to the values; it would make
every weight dense. Here tensors are read one after another. The embedding, the head, and types of
blocks that ops/ggml_blocks.py does not know become dense.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loractl import console, text
from loractl.errors import ModelError
from loractl.models import packer
from loractl.models.gguf_file import Header, Place
from loractl.models.packed_names import quantizable
from loractl.models.packer import Packing, Ready
from loractl.models.stored import Made, Stored
from loractl.models.torch_dtypes import DTYPES, dtype_word
from loractl.ops.ggml_blocks import TYPES
from loractl.ops.packed import Packed
from loractl.quant.kinds import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor

PLAIN = {0: "F32", 1: "F16", 30: "BF16"}
"""ggml_type of numbers without blocks -> the name that safetensors has for it."""


def load(
    header: Header,
    model_class: Any,
    config: "PreTrainedConfig",
    work: Packing,
    *,
    chosen: Quantization | None,
) -> tuple["PreTrainedModel", Mapping[str, Any]]:
    """The model, and what transformers says of its tensors. It is never dense as a whole.

    `chosen`: how its linear layers are packed, from the numbers that the blocks stand for, in place
    of the blocks. Raises ModelError, and what transformers raises.
    """
    with torch.device("meta"):
        skeleton: PreTrainedModel = model_class(config)
    file = _File(header, _processor(header, config))
    names = _names(header, skeleton)
    linear = {f"{path}.weight" for path in quantizable(skeleton, chosen)}
    tensors: dict[str, Any] = {}
    others: list[Place] = []  # of linear layers, in blocks that are not known
    for place in header.tensors:
        name = names.get(place.name)  # none: it is computed from the config, such as rope_freqs
        if name in linear and chosen is None and place.ggml_type in TYPES:
            tensors[name] = Made(partial(file.ready, place, work.dtype))
        elif name is not None:
            packs = chosen is not None and name in linear
            dtype = DTYPES[chosen.dtype] if chosen and packs else work.dtype
            tensors[name] = Made(partial(file.dense, place, dtype))
            others += [place] if name in linear and not packs else []
    work.chosen = chosen
    model, found = packer.load(model_class, config, tensors, work)
    if work.faults:
        raise ModelError(
            f"model {work.name}: the shape of {work.faults[0]} differs from its fields"
        )
    model.config._name_or_path = str(header.path.parent)
    _say_what_is_dense([one for one in others if one.ggml_type not in PLAIN], work)
    _say_what_is_lost(header, work)
    return model, found


def _names(header: Header, skeleton: "PreTrainedModel") -> dict[str, str]:
    """A tensor's name in the file -> the one that the model has for it.

    transformers' get_gguf_hf_weights_map makes gguf's table again for each module, 4 s for 397.
    """
    import gguf

    kind = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == header.architecture)
    table = gguf.get_tensor_name_map(kind, int(skeleton.config.num_hidden_layers))
    found = {table.get_name(name, (".weight", ".bias")): name for name in skeleton.state_dict()}
    return {name: full for name, full in found.items() if name is not None}


def _processor(header: Header, config: "PreTrainedConfig") -> "TensorProcessor":
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    kind: type[TensorProcessor] = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
    return kind(config=config.to_dict())


def _say_what_is_dense(places: list[Place], work: Packing) -> None:
    from gguf import GGMLQuantizationType

    if places:
        kinds = sorted({GGMLQuantizationType(one.ggml_type).name.lower() for one in places})
        console.note(
            f"note: {work.name}: {text.counted(len(places), 'linear layer')} in"
            f" {' and '.join(kinds)} are held in {dtype_word(work.dtype)}; blocks that stay as they"
            f" are: {', '.join(kind.name for kind in TYPES.values())}"
        )


def _say_what_is_lost(header: Header, work: Packing) -> None:
    """Of the rotary embeddings' scaling, which transformers 5.23 does not read from a file."""
    factor = header.fields.get(f"{header.architecture}.rope.scaling.factor", 1.0)
    if factor != 1.0 or any(place.name.startswith("rope_f") for place in header.tensors):
        console.note(
            f"note: {work.name}: its rotary embeddings are scaled for a longer context, which"
            " is not read from a GGUF file, and llama.cpp computes something else with it; use the"
            " model's safetensors directory"
        )


@dataclass(frozen=True)
class _File:
    """Tensors of a file as the model has them."""

    header: Header
    processor: "TensorProcessor"  # undoes what the converter did to their rows and values

    def ready(self, place: Place, dtype: torch.dtype) -> Ready:
        return Ready(self._packed(place, dtype))

    def dense(self, place: Place, dtype: torch.dtype) -> Tensor:
        """The numbers in float32, rounded once to `dtype`."""
        if place.ggml_type in TYPES:
            return self._packed(place, dtype).dense()
        if place.ggml_type in PLAIN:
            values = self._read(place, PLAIN[place.ggml_type], place.shape)
            wide = values if values.dim() > 1 else values.float()  # norms are shifted
            return self._restored(wide, place).to(dtype)
        from gguf import GGMLQuantizationType, quants

        blocks = self._rows(place).numpy()
        numbers = quants.dequantize(blocks, GGMLQuantizationType(place.ggml_type))
        return torch.from_numpy(numbers).to(dtype)

    def _packed(self, place: Place, dtype: torch.dtype) -> Packed:
        return Packed.of_blocks(self._rows(place), TYPES[place.ggml_type], dtype)

    def _rows(self, place: Place) -> Tensor:
        """The rows of a matrix in blocks, as bytes."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        values, size = GGML_QUANT_SIZES[GGMLQuantizationType(place.ggml_type)]
        n_rows, width = place.shape
        rows = self._read(place, "U8", (n_rows, width // values * size))
        return self._restored(rows, place)

    def _read(self, place: Place, dtype: str, shape: tuple[int, ...]) -> Tensor:
        return Stored(self.header.path, place.offset, dtype, shape).read()

    def _restored(self, rows: Tensor, place: Place) -> Tensor:
        process: Any = self.processor.process
        restored: Tensor = process(weights=rows, name=place.name).weights
        return restored.contiguous()
