"""GGUF files: an adapter, or base + adapter as one model, written strip by strip.

The layout of a model in such a file is defined by `layout`, its tokenizer by `vocabulary`. Nothing
larger than one tensor of the base is ever in memory: strips of rows are read, merged in float64,
rounded once and appended.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from loractl.artifacts.gguf.layout import Field, Layout
from loractl.artifacts.model.plan import Plan, is_tied, places
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.updates import tensors_beside, updates
from loractl.errors import ArtifactError, ModelError
from loractl.lora.dense import strips
from loractl.models.load import Source, head_name
from loractl.ops.finite import all_finite
from loractl.ops.threads import one_thread

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedModel

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # llama_ftype
BLOCK = 32  # values that share a scale in q8_0
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Piece:
    """One tensor of a file: its strips in float32, top to bottom."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    strips: Callable[[], Iterator[Tensor]]


def write_model(
    path: Path, pieces: list[Piece], layout: Layout, vocabulary: Mapping[str, Field], dtype: str
) -> None:
    """Write a complete model. Raises ArtifactError if a value does not fit into `dtype`."""
    fields: dict[str, Field] = {
        "general.type": "model",
        "general.file_type": FILE_TYPES[dtype],
        **layout.fields,
        **vocabulary,
    }
    _write_file(path, layout.family.architecture, fields, pieces)


def write_adapter(path: Path, adapter: Adapter, layout: Layout, pieces: list[Piece]) -> None:
    """Write an adapter that llama.cpp applies to a GGUF of its base; `pieces` as from `halves`."""
    fields: dict[str, Field] = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": one_alpha(adapter),
        "general.name": adapter.directory.resolve().name,
    }
    _write_file(path, layout.family.architecture, fields, pieces)


def one_alpha(adapter: Adapter) -> float:
    """The single alpha of a file: that of the most common rank and scale.

    llama.cpp scales by alpha / rank, with the rank taken from the shape of B.
    """
    found = Counter(u.factors.scale * u.factors.rank for u in updates(adapter).values())
    return found.most_common(1)[0][0]


def halves(
    adapter: Adapter, layout: Layout, skeleton: "PreTrainedModel", dtype: str
) -> list[Piece]:
    """A and B of every module by llama.cpp's names, B's rows in its order, scales folded into B.

    Raises ArtifactError for anything llama.cpp cannot apply to a base.
    """
    if adapter.rows:
        raise _not_held(adapter, "it has rows of new tokens")
    strange = sorted(name for name in tensors_beside(adapter) if ".base_layer." not in name)
    if strange:
        raise _not_held(adapter, f"{strange[0]} is not part of a plain low-rank update")
    alpha = one_alpha(adapter)
    head = head_name(skeleton)
    pieces: list[Piece] = []
    for module, update in updates(adapter).items():
        if update.kind == "embedding":
            raise _not_held(adapter, f"{module} is an embedding")
        if module == head and (is_tied(skeleton) or not layout.family.own_head):
            raise _not_held(adapter, f"{module} shares its weight with the embedding")
        A, B = update.factors.A.float(), update.factors.B.float()  # (r, d_in), (d_out, r)
        gain = update.factors.scale * update.factors.rank / alpha
        if gain != 1.0:
            B = (B.double() * gain).float()
        order = layout.row_order(f"{module}.weight", B.shape[0])
        name = layout.name_of(f"{module}.weight")
        pieces.append(_one_strip(f"{name}.lora_a", A, dtype))
        pieces.append(_one_strip(f"{name}.lora_b", B if order is None else B[order], dtype))
    return pieces


def _not_held(adapter: Adapter, what: str) -> ArtifactError:
    return ArtifactError(
        f"{adapter.directory}: {what}, which llama.cpp cannot apply to a base model; use"
        " --to merged-gguf"
    )


def _one_strip(name: str, tensor: Tensor, dtype: str) -> Piece:
    return Piece(name, tuple(tensor.shape), dtype, lambda: iter([tensor]))


def weights(
    source: Source, skeleton: "PreTrainedModel", plan: Plan, layout: Layout, dtype: str
) -> list[Piece]:
    """Every weight of base + updates, as stored in a GGUF file of `dtype`.

    Raises ModelError if a tensor of the model is not in its files.
    """
    stored = places(source)
    prefix = skeleton.base_model_prefix + "."
    head = f"{head_name(skeleton)}.weight"
    if plan.untie and not layout.family.own_head:
        raise ModelError(
            f"{source.name}: the adapter gives the output head a weight of its own, which"
            f" llama.cpp's {layout.family.architecture} cannot hold"
        )
    pieces = [_one_strip(name, tensor, "f32") for name, tensor in layout.extra.items()]
    for name, parameter in skeleton.state_dict().items():
        options = (name, name.removeprefix(prefix), prefix + name)
        at = next((option for option in options if option in stored or option in plan.untied), None)
        if name == head and is_tied(skeleton) and not plan.untie:
            continue
        if at is None:
            raise ModelError(f"{source.name}: {name} is not in its files under any known name")
        kind = dtype_of(tuple(parameter.shape), dtype)
        reading = _strips_of(stored, plan, at, layout, name)
        pieces.append(Piece(layout.name_of(name), tuple(parameter.shape), kind, reading))
    return pieces


def dtype_of(shape: tuple[int, ...], wanted: str) -> str:
    """Vectors stay in float32; rows that do not fill whole q8_0 blocks use f16, as in llama.cpp."""
    if len(shape) < 2:
        return "f32"
    return "f16" if wanted == "q8_0" and shape[-1] % BLOCK else wanted


def _strips_of(
    stored: Mapping[str, Path], plan: Plan, at: str, layout: Layout, name: str
) -> Callable[[], Iterator[Tensor]]:
    """The strips of a tensor of the base, with its update; the file stays mapped during them."""
    start = plan.untied.get(at, at)
    layer, shift = plan.updates.get(at), layout.shift(name)
    replaced, new = plan.replaced.get(at), plan.new_rows.get(at)

    def merged() -> Iterator[Tensor]:
        if replaced is not None:  # trained whole
            yield replaced.float() + (shift if replaced.dim() < 2 else 0)
            return
        with safe_open(stored[start], framework="pt") as file:
            if new is not None:
                yield new.merged(file.get_tensor(start), torch.float32).detach()
                return
            if layer is not None:
                W = plan.tensor(start, file)
                yield from (rows.float() for _, _, rows in layer.merged_rows(W))
                return
            if start in plan.packed:
                yield plan.tensor(start, file).float()
                return
            part = file.get_slice(start)
            shape = part.get_shape()
            if len(shape) < 2:
                yield part[:].float() + shift
                return
            size = strips(shape)
        for first, last in size:  # reopened each time: touched pages of a map count as resident
            with safe_open(stored[start], framework="pt") as file:
                yield file.get_slice(start)[first : min(last, shape[0])].float()

    def ordered() -> Iterator[Tensor]:
        rows = torch.cat(list(merged()))
        order = layout.row_order(name, rows.shape[0])
        yield rows[order]

    permuted = layout.family.rotates_pairs and name.split(".")[-2] in ("q_proj", "k_proj")
    return ordered if permuted else merged


def _write_file(
    path: Path, architecture: str, fields: Mapping[str, Field], pieces: list[Piece]
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    for key, value in fields.items():
        _add_field(writer, key, value)
    for piece in pieces:
        kind = _ggml_type(piece.dtype)
        size = _byte_count(piece.shape, kind)
        writer.add_tensor_info(piece.name, piece.shape, np.dtype(np.float32), size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]  # its own write method needs whole tensors
        with one_thread():
            for piece in pieces:
                writer.write_padding(file, file.tell())
                _append_piece(file, piece)
                writer.write_padding(file, file.tell())
    finally:
        writer.close()


def _append_piece(file: Any, piece: Piece) -> None:
    from gguf import quants

    kind, rows = _ggml_type(piece.dtype), 0
    for strip in piece.strips():
        found = strip.numpy()
        data = quants.quantize(found, kind)
        rounded = strip.half() if piece.dtype == "f16" else strip
        if not all_finite(rounded):
            raise ArtifactError(
                f"{piece.name}: a weight is too large for {piece.dtype}; use --dtype bf16 or f32"
            )
        data.tofile(file)
        rows += found.shape[0]
    assert rows == piece.shape[0], f"{piece.name}: {rows} rows, expected {piece.shape[0]}"


def _ggml_type(dtype: str) -> "GGMLQuantizationType":
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[dtype.upper()]


def _byte_count(shape: tuple[int, ...], kind: "GGMLQuantizationType") -> int:
    from gguf import GGML_QUANT_SIZES

    values, size = GGML_QUANT_SIZES[kind]
    return torch.Size(shape).numel() // values * size


def _add_field(writer: "GGUFWriter", key: str, value: Field) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
