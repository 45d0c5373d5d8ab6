"""A causal LM without weights, beside the files that hold them: what a pass layer by layer needs.

Tensors are read by safetensors, converted to float32, and found by the names that the model has for
them. Where transformers builds a tensor from several in the files (fused experts), it does so here
too, for one part of the model at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from loractl.artifacts.model.plan import is_tied, packed_tensors, places, table_name
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.vocabulary_size import rows_needed
from loractl.lora.dense import strips
from loractl.models.load import Source, head_name, load_skeleton, n_rows
from loractl.ops.finite import all_finite
from loractl.ops.untouched import untouched_zeros

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST_KEPT = 1 << 26
"""Values of a tensor whose memory is used again: those of a layer are smaller, tables larger."""


Spare = dict[tuple[int, ...], list[Tensor]]
"""Memory of float32 tensors that nobody needs any more, by their shapes."""


class NotLayerwiseError(Exception):
    """A model that cannot run layer by layer; the message says why."""


class Hollow:
    """The model, on the meta device but for its computed buffers, and its tensors by name."""

    def __init__(self, source: Source, spare: "Spare | None" = None) -> None:
        """`spare`: memory that is used again. Raises NotLayerwiseError if a tensor has no place in
        the files."""
        if source.gguf:
            raise NotLayerwiseError("its weights are in a GGUF file")
        self.source = source
        self.model = load_skeleton(source, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
        _compute_buffers_(self.model)
        self.shapes = {name: tuple(t.shape) for name, t in self.model.state_dict().items()}
        self.table, self.head = table_name(self.model), head_name(self.model)
        self.tied = is_tied(self.model)
        self.parts = parts_of(self.model)
        self._files = places(source)
        packed = packed_tensors(source, self.model)
        if packed is None:
            raise NotLayerwiseError("the weights to pack have other names in its files")
        self._packed = packed
        self.spare: Spare = {} if spare is None else spare
        self._prefix = self.model.base_model_prefix + "."
        if self.tied and self.stored(f"{self.head}.weight") is not None:
            raise NotLayerwiseError("its files hold a weight for a head that is tied")

    def stored(self, name: str) -> str | None:
        """The name in the files of a tensor of the model; None: it is not there under any."""
        options = (name, name.removeprefix(self._prefix), self._prefix + name)
        return next((option for option in options if option in self._files), None)

    def has_rows(self, name: str) -> bool:
        """Whether rows of a tensor can be read: it is in the files, and not packed."""
        stored = self.stored(self.key(name))
        return stored is not None and stored not in self._packed

    def key(self, name: str) -> str:
        """The name of the tensor that a tensor is: of a tied head, the embedding's."""
        is_tied_head = self.tied and name == f"{self.head}.weight"
        return f"{self.table}.weight" if is_tied_head else name

    def names_of(self, path: str) -> list[str]:
        return [name for name in self.shapes if name.startswith(f"{path}.")]

    @cached_property
    def _slots(self) -> dict[str, tuple[nn.Module, str]]:
        """Where each tensor belongs, once adapters are in: its module and its name there."""
        found = {
            ".".join(part for part in f"{path}.{name}".split(".") if part != "base"): (module, name)
            for path, module in self.model.named_modules()
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None and tensor.is_meta
        }
        if lacking := sorted(self.shapes.keys() - found.keys()):
            raise NotLayerwiseError(f"{lacking[0]} has no place of its own")
        return found

    def put(self, name: str, tensor: Tensor) -> None:
        """Let the model have this tensor."""
        module, last = self._slots[name]
        if last in module._parameters:
            module._parameters[last] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[last] = tensor

    def held(self, path: str) -> dict[str, Tensor]:
        """The tensors of a part that the model has."""
        return {name: getattr(*self._slots[name]).detach() for name in self.names_of(path)}

    def is_parameter(self, name: str) -> bool:
        module, last = self._slots[name]
        return last in module._parameters

    def fill(self, path: str) -> None:
        """Let the model have the tensors of one part. Raises NotLayerwiseError."""
        for name, tensor in self.load(path).items():
            self.put(name, tensor)

    def empty(self, path: str) -> None:
        """Let the model have them no longer."""
        for name in self.names_of(path):
            self.put(name, torch.empty(self.shapes[name], device="meta"))

    def load(self, path: str) -> dict[str, Tensor]:
        """The tensors of one part in float32. Raises NotLayerwiseError."""
        names = self.names_of(path)
        if all(self.stored(self.key(name)) is not None for name in names):
            found = {name: self._read(name) for name in names}
        else:
            found = self._converted(path)
        for name, tensor in found.items():
            if tuple(tensor.shape) != self.shapes[name]:
                raise NotLayerwiseError(f"{name} has shape {list(tensor.shape)} in its files")
            if not all_finite(tensor):
                raise NotLayerwiseError(f"{name} is not finite")
        return found

    def _read(self, name: str) -> Tensor:
        stored = self.stored(self.key(name))
        assert stored is not None
        with safe_open(self._files[stored], framework="pt") as file:
            packed = self._packed.get(stored)
            tensor: Tensor = file.get_tensor(stored) if packed is None else packed()
            free = self.spare.get(tuple(tensor.shape))
            held = free.pop() if free else torch.empty(tensor.shape)
            return held.copy_(tensor)  # nothing of the map stays

    def take_back(self, tensors: Iterable[Tensor]) -> None:
        """Let the next part use this memory: new pages would cost more than the reading."""
        for tensor in tensors:
            whole = tensor.is_contiguous() and tensor.dtype == torch.float32
            if whole and not tensor.is_meta and tensor.numel() <= LARGEST_KEPT:
                self.spare.setdefault(tuple(tensor.shape), []).append(tensor)

    def load_one(self, name: str) -> Tensor | None:
        """A tensor of the model in float32; None: the model has none of this name."""
        if name not in self.shapes:
            return None
        if self.stored(name) is None:
            raise NotLayerwiseError(f"{name} is not in its files")
        return self._read(name)

    def rows(self, name: str) -> "TableRows":
        """A tensor whose rows are read when they are asked for. Raises NotLayerwiseError."""
        stored = self.stored(self.key(name))
        if stored is None:
            raise NotLayerwiseError(f"{name} is not in its files")
        return TableRows(self._files[stored], stored, torch.Size(self.shapes[name]))

    @cached_property
    def _shell(self) -> "PreTrainedModel":
        return load_skeleton(self.source, dtype=torch.float32)

    @cached_property
    def _conversion(self) -> tuple[list[Any], Mapping[str, str]]:
        """How transformers converts the files, and what each of their tensors becomes part of."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )

        mapping = get_model_conversion_mapping(self._shell)
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in mapping if isinstance(one, WeightConverter)]
        state, prefix = self._shell.state_dict(), self._shell.base_model_prefix
        becomes = {
            stored: rename_source_key(stored, renamings, converters, prefix, state)[0]
            for stored in self._files
        }
        return mapping, becomes

    def _converted(self, path: str) -> dict[str, Tensor]:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        mapping, becomes = self._conversion
        wanted = [name for name, full in becomes.items() if full.startswith(f"{path}.")]
        read = {}
        for stored in wanted:
            with safe_open(self._files[stored], framework="pt") as file:
                read[stored] = file.get_tensor(stored).clone()
        settings = LoadStateDictConfig(dtype=torch.float32, weight_mapping=mapping)
        convert_and_load_state_dict_in_model(self._shell, read, settings)
        found = {}
        for name in self.names_of(path):
            owner, _, last = name.rpartition(".")
            module = self._shell.get_submodule(owner)
            tensor = getattr(module, last)
            if tensor.is_meta:
                raise NotLayerwiseError(f"{name} is not in its files")
            found[name] = tensor.detach()
            held = module._parameters if last in module._parameters else module._buffers
            held[last] = nn.Parameter(tensor.detach().to("meta"), requires_grad=False)
        return found


def base_of(source: Source, adapter: Adapter) -> Hollow:
    """The base of an adapter. Raises NotLayerwiseError if both cannot run layer by layer."""
    hollow = Hollow(source)
    if adapter.rows or rows_needed(adapter, hollow.model) > n_rows(hollow.model):
        raise NotLayerwiseError("the adapter has rows of new tokens")
    return hollow


class TableRows:
    """Rows of a stored tensor in float32."""

    device = torch.device("cpu")

    def __init__(self, shard: Path, stored: str, shape: torch.Size) -> None:
        self._shard, self._stored, self.shape = shard, stored, shape
        with safe_open(shard, framework="pt") as file:
            if (found := list(file.get_slice(stored).get_shape())) != list(shape):
                raise NotLayerwiseError(f"{stored} has shape {found} in its files")

    def __getitem__(self, rows: slice) -> Tensor:
        with safe_open(self._shard, framework="pt") as file:
            part: Tensor = file.get_slice(self._stored)[rows]
            read = part.to(torch.float32, copy=True)
        if not all_finite(read):
            raise NotLayerwiseError(f"{self._stored} is not finite")
        return read

    def only(self, rows: Sequence[int]) -> Tensor:
        """The whole table, of which the other rows are zero, and take no memory."""
        found = untouched_zeros(self.shape)
        with safe_open(self._shard, framework="pt") as file:
            stored = file.get_slice(self._stored)
            for row in rows:
                found[row] = stored[row : row + 1][0]
        return found

    def strips(self) -> Iterator[Tensor]:
        for start, stop in strips(self.shape):
            yield self[start:stop]


def parts_of(model: nn.Module, path: str = "") -> list[str]:
    """The paths of the modules that run one after another: each layer, and whatever else holds
    tensors. Raises NotLayerwiseError if a module around them holds some of its own."""
    found: list[str] = []
    for name, module in model.named_children():
        at = f"{path}.{name}" if path else name
        if not module.state_dict():
            continue
        if isinstance(module, nn.ModuleList):
            found += [f"{at}.{inner}" for inner, layer in module.named_children()]
        elif any(True for _ in module.parameters(recurse=False)):
            found.append(at)
        else:
            found += parts_of(module, at)
    if not path and any(True for _ in model.parameters(recurse=False)):
        raise NotLayerwiseError("the model itself holds tensors")
    return found


def _compute_buffers_(model: "PreTrainedModel") -> None:
    """Give values to the buffers that no file holds, as transformers does after it has loaded."""
    for module in model.modules():
        hollow = [
            name
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_meta and name in module._non_persistent_buffers_set
        ]
        for name in hollow:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")  # type: ignore[arg-type]
        module._is_hf_initialized = not hollow  # type: ignore[assignment]
    model.initialize_weights()  # type: ignore[no-untyped-call]
