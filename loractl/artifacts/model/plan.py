"""What a merge changes in a base's files: which tensors, and from what they are made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from loractl.artifacts import files
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import load_, own_weights, require_same
from loractl.artifacts.peft.vocabulary_size import copied_tables, fitted, require_same_start
from loractl.errors import ArtifactError
from loractl.lora.inject import adaptable
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import EXPERTS
from loractl.lora.token_rows import TokenRows, token_rows
from loractl.lora.whole import wholes
from loractl.models import packer
from loractl.models.base_directory import INDEX
from loractl.models.load import Source, head_name, limits, n_rows
from loractl.models.packed_names import quantizable
from loractl.models.torch_dtypes import DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Packed = Mapping[str, Callable[[], Tensor]]
"""The name in the files of each weight that training packed, and what makes its numbers then."""


@dataclass(frozen=True)
class NewRows:
    """An embedding or a head with rows of an adapter, and with as many rows as that needs."""

    n_rows: int
    rows: TokenRows | None = None  # None: it only grows
    copy: Tensor | None = None  # of the grown weight, if the adapter has one

    def merged(self, old: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight in place of that of the base, every row rounded once."""
        tables = {} if self.copy is None else {"": self.copy}
        grown = fitted(old.float(), self.n_rows, "", tables)
        return grown.to(dtype) if self.rows is None else self.rows.merged_weight(grown, dtype=dtype)


@dataclass(frozen=True)
class Plan:
    """Which tensors of the base's files change, and how."""

    updates: Mapping[str, LoraLayer]  # tensor name in the files -> its adapted layer
    replaced: Mapping[str, Tensor]  # tensor name in the files -> its fully trained value
    untied: Mapping[str, str]  # tensor to add -> the tensor whose old value it starts from
    untie: bool
    new_rows: Mapping[str, NewRows] = field(default_factory=dict)  # likewise -> its new rows
    vocabulary: int | None = None  # tokens of the merged model, if they are more than the base's
    packed: Packed = field(default_factory=dict)

    def tensor(self, name: str, file: Any) -> Tensor:
        """A tensor of an open file, as the adapter was trained on it."""
        return self.packed[name]() if name in self.packed else file.get_tensor(name)


Change = LoraLayer | Tensor | NewRows
"""An update of a weight, a weight in its place, or new rows of it."""


def is_tied(model: "PreTrainedModel") -> bool:
    """Whether the output head is the embedding table; ask before adapters go in."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head is not None and head.weight is model.get_input_embeddings().weight


def shards(source: Source) -> list[Path]:
    """The weight files of a model directory: those in its index, or the only one."""
    index = source.directory / INDEX
    if not index.is_file():
        return source.weight_files()
    names = sorted(set(files.read_json(index)["weight_map"].values()))
    for name in names:
        if not (source.directory / name).is_file():
            raise ArtifactError(f"{index}: lists {name}, which does not exist")
    return [source.directory / name for name in names]


def places(source: Source) -> dict[str, Path]:
    """The name of every tensor of a model directory, and the shard it is in."""
    found: dict[str, Path] = {}
    for shard in shards(source):
        with safe_open(shard, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), shard)
    return found


def plan_merge(source: Source, skeleton: "PreTrainedModel", adapter: Adapter) -> Plan | None:
    """Find each adapted weight in the files; None if they lay weights out differently.

    If a head that shares the embedding's weight, or that embedding, is adapted, the head gets a
    weight of its own: its merged one, or the old embedding. Otherwise an update of one would
    silently change both. Rows that both share leave them one weight.
    """
    found = places(source)
    prefix = skeleton.base_model_prefix + "."
    packed = packed_tensors(source, skeleton)
    if packed is None:
        return None

    def in_files(full: str) -> str | None:
        options = (full, full.removeprefix(prefix), prefix + full)
        return next((name for name in options if name in found), None)

    for path, copy, require in (
        *((p, c, require_same_start) for p, c in copied_tables(adapter, skeleton).items()),
        *((p, c, require_same) for p, c in own_weights(adapter, adaptable(skeleton)).items()),
    ):
        if name := in_files(f"{path}.weight"):
            with safe_open(found[name], framework="pt") as file:
                require(adapter, path, copy, file.get_tensor(name))
    tied = is_tied(skeleton)
    embedding, head = f"{table_name(skeleton)}.weight", f"{head_name(skeleton)}.weight"
    changes = _changes(skeleton, adapter)
    shares = any(one.follows for one in token_rows(skeleton).values())
    untie = tied and not shares and (head in changes or embedding in changes)
    rows = n_rows(skeleton)
    has_grown = rows != limits(source).rows
    if has_grown:
        copies = copied_tables(adapter, skeleton)
        for full in (embedding,) if tied and not untie else (embedding, head):
            changes.setdefault(full, NewRows(rows, copy=copies.get(full.removesuffix(".weight"))))
    if shares and in_files(head) is not None:  # stored, though it is not used
        changes[head] = changes[embedding]
    untied: dict[str, str] = {}
    if untie and in_files(head) is None:
        old = in_files(embedding)
        if old is None:
            return None
        untied[head] = old
    placed: dict[str, Change] = {}
    for full, change in changes.items():
        place = full if full in untied else in_files(full)
        if place is None:
            return None
        placed[place] = change
    return Plan(
        updates={n: one for n, one in placed.items() if isinstance(one, LoraLayer)},
        replaced={n: one for n, one in placed.items() if isinstance(one, Tensor)},
        new_rows={n: one for n, one in placed.items() if isinstance(one, NewRows)},
        untied=untied,
        untie=untie,
        vocabulary=rows if has_grown else None,
        packed=packed,
    )


def packed_tensors(source: Source, skeleton: "PreTrainedModel") -> Packed | None:
    """The weights that training packed; None if they have other names in the files. Asked before
    adapters go into the skeleton."""
    if source.quantization is None:
        return {}
    chosen, prefix = source.quantization, skeleton.base_model_prefix + "."
    stored = packer.tensors_of(shards(source), DTYPES[chosen.dtype])
    found: dict[str, Callable[[], Tensor]] = {}
    for path in quantizable(skeleton, chosen):
        full = f"{path}.weight"
        options = (full, full.removeprefix(prefix), prefix + full)
        if (name := next((one for one in options if one in stored), None)) is None:
            return None
        found[name] = partial(packer.numbers_of, stored[name], chosen)
    return found


def _changes(skeleton: "PreTrainedModel", adapter: Adapter) -> dict[str, Change]:
    """What an adapter does to the weights of a model, by their names; puts it into the model."""
    copies = copied_tables(adapter, skeleton)
    found: dict[str, Change] = {}
    for module, layer in load_(skeleton, adapter).items():
        found[module if layer.kind in EXPERTS else f"{module}.weight"] = layer
    for path, whole in wholes(skeleton).items():
        found |= {f"{path}.{inner}": t for inner, t in whole.tuned.state_dict().items()}
    for path, one in token_rows(skeleton).items():
        if not one.follows:
            found[f"{path}.weight"] = NewRows(n_rows(skeleton), one, copies.get(path))
    return found


def table_name(model: "PreTrainedModel") -> str:
    """The path of the module that embeds the input."""
    table = model.get_input_embeddings()
    found: str = next(name for name, module in model.named_modules() if module is table)
    return found
