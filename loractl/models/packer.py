"""Loads a causal LM whose linear layers are packed in 4 or 8 bits, one tensor after another.

transformers' seam for quantizers does it: it renames and converts what a model's files hold, and
gives each weight to `Packer`, which puts a packed layer in place of the plain one. Files are read,
not mapped, so the dense model is never in memory. Weights that bitsandbytes has packed, or a cache,
come as they are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from loractl.errors import ModelError
from loractl.models.stored import Made, Stored, tensors_in
from loractl.ops.finite import all_finite
from loractl.ops.packed import Nested, Packed, strips
from loractl.quant import bitsandbytes_files
from loractl.quant.kinds import Quantization
from loractl.quant.linear import PackedLinear, moved, packed_layers, unpacked

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "loractl"
"""The name of our seam among transformers' quantizers."""


@dataclass
class Packing:
    """One load: what is asked for, and what was found."""

    name: str  # of the model, for errors
    dtype: torch.dtype  # of the products
    device: torch.device
    chosen: Quantization | None = None  # None: only what comes packed is packed
    dense: bool = False  # whether it is unpacked in the end
    faults: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    """Path of each packed module -> the name of its weight in the files, where it has one."""


@dataclass(frozen=True)
class Ready:
    """A packed weight on its way through transformers' loader, which takes it for a tensor."""

    packed: Packed

    def to(self, **options: Any) -> "Ready":
        return self


class PackingConfig(QuantizationConfigMixin):
    """Carries a `Packing` to `Packer`."""

    def __init__(self, packing: Packing) -> None:
        self.quant_method: Any = NAME
        self.packing = packing

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": NAME}


class Packer(HfQuantizer):
    """Puts packed layers into a model while transformers loads it."""

    quantization_config: PackingConfig

    @property
    def packing(self) -> Packing:
        return self.quantization_config.packing

    @property
    def packs_head(self) -> bool:
        return self.packing.chosen is not None and self.packing.chosen.head

    def preprocess_model(self, model: "PreTrainedModel", dtype: Any = None, **kwargs: Any) -> None:
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
        if self.packs_head and tied:
            raise ModelError(
                f"model {self.packing.name}: its head shares the weight of the embedding, which is"
                " not quantized; remove model.quantize_head"
            )
        self.dense = None if self.packs_head else head

    def postprocess_model(self, model: "PreTrainedModel", **kwargs: Any) -> None:
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]

    def param_needs_quantization(
        self, model: "PreTrainedModel", param_name: str, **kwargs: Any
    ) -> bool:
        path, _, last = param_name.rpartition(".")
        module = model.get_submodule(path)
        # A head whose files are packed is a packed one, whatever was asked for.
        asked = self.packing.chosen is None or module is not self.dense
        return last == "weight" and type(module) is nn.Linear and asked

    def get_quantize_ops(self) -> ConversionOps:
        return _Pack(self)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _Pack(ConversionOps):
    """Packs the weights of one conversion and swaps their layers."""

    def __init__(self, packer: Packer) -> None:
        self.packer = packer

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        packing, model, dense = self.packer.packing, kwargs["model"], {}
        for name, value in input_dict.items():
            value = value[0] if isinstance(value, list) else value
            path = name.rpartition(".")[0]
            layer: Any = model.get_submodule(path)
            is_ready = isinstance(value, Ready)
            shape = value.packed.shape if is_ready else tuple(value.shape)
            if shape != (layer.out_features, layer.in_features):
                packing.faults.append(name)
            elif is_ready or packing.chosen is not None:
                packed = value.packed if is_ready else self._packed(value)
                if not _is_finite(packed):
                    packing.not_finite.append(name)
                packed = moved(packed, packing.device)
                if not packing.dense:
                    packed = replace(packed, dtype=packing.dtype)
                model.set_submodule(path, PackedLinear(packed, layer.bias))
                if len(input_dict) == 1 and not re.search(r"[*^$\\]", source_patterns[0]):
                    packing.keys[path] = source_patterns[0]
            else:
                dense[name] = value
                continue
            kwargs["missing_keys"].discard(name)
        return dense

    def _packed(self, weight: Tensor) -> Packed:
        packing = self.packer.packing
        assert packing.chosen is not None
        return packing.chosen.pack(weight.to(packing.device))

    @property
    def reverse_op(self) -> ConversionOps:
        raise NotImplementedError("a packed model is written by loractl, not by transformers")


def _is_finite(packed: Packed) -> bool:
    if packed.blocks is not None:  # the scales lie in them
        return all(all_finite(rows) for _, _, rows in strips(packed))
    scales = packed.scales.scales if isinstance(packed.scales, Nested) else packed.scales
    return bool(scales.isfinite().all())


def load(
    model_class: Any,
    config: "PreTrainedConfig",
    tensors: Mapping[str, Any],
    packing: Packing,
) -> tuple["PreTrainedModel", Mapping[str, Any]]:
    """The model, with its linear layers packed, and what transformers says of the tensors."""
    if NAME not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(NAME)(PackingConfig)
        register_quantizer(NAME)(Packer)
    loaded: Any = model_class.from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=packing.dtype,
        quantization_config=PackingConfig(packing),
        output_loading_info=True,
    )
    return loaded[0], loaded[1]


def tensors_of(files: list[Path], dtype: torch.dtype) -> dict[str, Any]:
    """The tensors of a model's files, those of a packed weight as one."""
    stored: dict[str, Stored] = {}
    for path in files:
        stored |= tensors_in(path)
    return with_packed(stored, stored, dtype)


def with_packed(
    tensors: Mapping[str, Any], parts: Mapping[str, Stored], dtype: torch.dtype
) -> dict[str, Any]:
    """Tensors in which every weight that is packed in `parts` is one value that has it."""
    found: dict[str, Any] = dict(tensors)
    for name, roles in bitsandbytes_files.groups(parts).items():
        for full in roles.values():
            found.pop(full, None)
        given = {role: parts[full] for role, full in roles.items()}
        found[name] = Made(partial(_read_packed, given, dtype))
    return found


def _read_packed(parts: Mapping[str, Stored], dtype: torch.dtype) -> Ready:
    tensors = {role: one.read() for role, one in parts.items()}
    return Ready(bitsandbytes_files.read(tensors, dtype))


def generation_config_of(directory: Path) -> GenerationConfig | None:
    """How a model directory wants text to be generated; None if it does not say."""
    try:
        return GenerationConfig.from_pretrained(directory, local_files_only=True)
    except OSError:
        return None


def unpack_(model: nn.Module, numbers: torch.dtype, dtype: torch.dtype) -> None:
    """Put dense layers in `dtype` in place of packed ones, whose numbers are in another."""
    for path, layer in packed_layers(model).items():
        layer.packed = replace(layer.packed, dtype=numbers)
        model.set_submodule(path, unpacked(layer, dtype))


def numbers_of(stored: "Stored | Made", chosen: Quantization) -> Tensor:
    """The numbers that a layer computes with, from its weight in the files: dense or packed."""
    value = stored[...]
    return value.packed.dense() if isinstance(value, Ready) else chosen.rounded(value)
