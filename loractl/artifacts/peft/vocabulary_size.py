"""How many rows the embedding of a base needs for an adapter with rows of new tokens.

Such an adapter is used as in PEFT after `base.resize_token_embeddings(len(tokenizer))`: the base
grows, and the adapter's rows replace the new ones. After such a resize PEFT also saves the whole
embedding and head; of these only the new rows are of use, and the others must be the base's.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loractl.artifacts import files
from loractl.artifacts.peft import token_indices
from loractl.artifacts.peft.adapter import CONFIG, WEIGHTS, Adapter
from loractl.artifacts.peft.names import PREFIX
from loractl.errors import ArtifactError
from loractl.lora.whole import as_peft_matches
from loractl.models.growth import Growth, extended, grow_
from loractl.models.load import n_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COPIES = ("weight", "token_adapter.base_layer.weight")
"""Names under which PEFT saves the embedding and the head of a base that was resized."""


def fit_(model: "PreTrainedModel", adapter: Adapter) -> Growth | None:
    """Let a plain model grow to what an adapter needs; None if it has the rows. A model never
    shrinks. Raises ArtifactError or ModelError."""
    here = n_rows(model)
    needed = rows_needed(adapter, model)
    if needed > here + token_indices.MOST_ROWS:
        raise ArtifactError(
            f"{adapter.directory / CONFIG}: {token_indices.FIELD} names the token {needed - 1}, but"
            f" the base has {here} rows; expected ids of its tokens, or of a few more"
        )
    tables = copied_tables(adapter, model)
    for path, copy in tables.items():
        require_same_start(adapter, path, copy, model.get_submodule(path).weight)
    if needed <= here:
        return None
    grown = grow_(model, needed)
    for path, copy in tables.items():
        weight: Any = model.get_submodule(path).weight
        if not weight.is_meta:
            with torch.no_grad():
                weight[here : len(copy)] = copy[here:].to(weight)
    return grown


def rows_needed(adapter: Adapter, model: "PreTrainedModel") -> int:
    """The rows of the embedding that an adapter was trained with; 0 if it brings none."""
    named = [index + 1 for indices in adapter.rows.values() for index in indices]
    sizes = [
        len(t) for t in (*whole_tables(adapter, model), *copied_tables(adapter, model).values())
    ]
    if not named and max(sizes, default=0) <= n_rows(model):
        return max(sizes, default=0)
    return max([*named, *sizes, _ids_of_tokenizer(adapter)])


def whole_tables(adapter: Adapter, model: "PreTrainedModel") -> list[Tensor]:
    """The embedding and the head, where an adapter has them in full."""
    ends = [path for path in token_indices.ends(model) if path is not None]
    whole = as_peft_matches(model, adapter.whole)
    names = [f"{PREFIX}{path}.weight" for path in ends if path in whole]
    return [adapter.tensors[name] for name in names if name in adapter.tensors]


def sizes_of_ends(adapter: Adapter, model: "PreTrainedModel") -> set[int]:
    """The rows of the embedding and the head that an adapter was made for, where it adapts one of
    them or has one in full."""
    found = {len(table) for table in whole_tables(adapter, model)}
    for path in token_indices.ends(model):
        for name, at in (("lora_embedding_A", 1), ("lora_B.weight", 0)):
            tensor = adapter.tensors.get(f"{PREFIX}{path}.{name}")
            if tensor is not None:
                found.add(tensor.shape[at])
    return found


def copied_tables(adapter: Adapter, model: "PreTrainedModel") -> dict[str, Tensor]:
    """The embedding and the head of the resized base that PEFT saved with an adapter, by path."""
    return {
        path: adapter.tensors[name]
        for name, path in copied_names(adapter, model).items()
        if name in adapter.tensors
    }


def copied_names(adapter: Adapter, model: "PreTrainedModel") -> dict[str, str]:
    """The names that such tensors would have, and the module of each."""
    ends = [path for path in token_indices.ends(model) if path is not None]
    whole = as_peft_matches(model, adapter.whole)
    return {f"{PREFIX}{path}.{name}": path for path in ends if path not in whole for name in COPIES}


def fitted(weight: Tensor, rows: int, path: str, tables: Mapping[str, Tensor]) -> Tensor:
    """The weight of an embedding or a head with this many rows, as `fit_` would make it."""
    if rows <= len(weight):
        return weight
    grown = extended(weight, rows)
    if (copy := tables.get(path)) is not None:
        grown[len(weight) : len(copy)] = copy[len(weight) :].to(grown)
    return grown


def require_same_start(adapter: Adapter, path: str, copy: Tensor, weight: Any) -> None:
    """Raise ArtifactError if the rows that a copy and the base both have differ."""
    rows = min(len(copy), len(weight))
    same = copy.shape[1:] == weight.shape[1:]
    if same and not weight.is_meta:
        ours = weight.detach()[:rows].to(device=copy.device, dtype=copy.dtype)
        same = torch.equal(copy[:rows].to(weight.dtype).to(copy.dtype), ours)
    if not same:
        raise ArtifactError(
            f"{adapter.directory / WEIGHTS}: its copy of {path} differs from the base's own weight;"
            " adapters that include a changed base are not supported"
        )


def _ids_of_tokenizer(adapter: Adapter) -> int:
    """The highest id of a token added to the tokenizer that an adapter brings, plus one."""
    if not adapter.brings_tokenizer:
        return 0
    path = adapter.directory / "tokenizer.json"
    added = files.read_json(path).get("added_tokens")
    ids = [one.get("id") for one in added or [] if isinstance(one, dict)]
    return max([index + 1 for index in ids if isinstance(index, int)], default=0)
