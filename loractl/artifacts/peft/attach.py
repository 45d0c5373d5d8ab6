"""Puts an adapter that was read into a model or a hub: all of it or nothing, after comparing names
and shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loractl.artifacts.peft import token_indices, vocabulary_size
from loractl.artifacts.peft.adapter import CONFIG, WEIGHTS, Adapter
from loractl.artifacts.peft.names import (
    PREFIX,
    ROWS,
    STARTS,
    SUFFIXES,
    buffers,
    parameters,
    stems,
    stems_of,
)
from loractl.errors import ArtifactError
from loractl.lora.dense import MatrixSize, dense_weight_of
from loractl.lora.dynamic import set_values_
from loractl.lora.hub import Hub, StandIn, stand_ins
from loractl.lora.inject import FORMULAS, adaptable, inject_, module_of, remove_, sizes_of
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import EXPERTS, ModuleRank, UnmatchedError, is_named
from loractl.lora.ranks import sizes as rank_sizes
from loractl.lora.token_rows import Saved, train_rows_
from loractl.lora.whole import as_peft_matches, train_whole_

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def ranks_of(adapter: Adapter, model: "PreTrainedModel") -> dict[str, ModuleRank]:
    """Match an adapter's tensors with a model's modules, all of them or none.

    Raises ArtifactError listing names that match nothing, missing halves, shapes that differ, and
    base weights that the adapter carries with changes.
    """
    fits = _find_places(adapter, model)
    where = adapter.directory / WEIGHTS
    brought = own_weights(adapter, fits.kinds)
    for name, tensor in brought.items():
        weight = dense_weight_of(*module_of(model, name, fits.kinds[name]))
        require_same(adapter, name, tensor, weight)
    known = fits.expected.keys() | fits.whole.keys()
    known |= {f"{PREFIX}{name}.base_layer.weight" for name in brought}
    known |= vocabulary_size.copied_names(adapter, model).keys()  # compared by `fit_`
    known |= _same_twice(adapter, model)
    unexpected = sorted(adapter.tensors.keys() - known)
    matched = len(adapter.tensors) - len(unexpected)
    if unexpected or not adapter.tensors:
        raise ArtifactError(
            f"{where}: {matched} of {len(adapter.tensors)} tensors match a module of the model;"
            f" unexpected: {_first_names(unexpected)}; expected names such as"
            f" {next(iter(fits.expected), 'none')}"
        )
    modules = list(dict.fromkeys(m for full, m in fits.expected.items() if full in adapter.tensors))
    wanted = {full: m for full, m in fits.expected.items() if m in modules}
    missing = sorted((wanted.keys() | fits.whole.keys()) - adapter.tensors.keys())
    if missing or not modules:
        listed = _first_names(missing) or "every lora_A and lora_B"
        raise ArtifactError(f"{where}: {len(missing)} tensors are missing: {listed}")
    for full, shape in fits.whole.items():
        why = "as in the module of the base"
        if full.endswith(ROWS):
            why = f"one row for each of {token_indices.FIELD}"
        _require_shape(adapter, full, shape, why)
    try:
        ranks = rank_sizes(adapter.spec, modules)
    except UnmatchedError as error:
        field = error.key.removeprefix("lora.")
        raise ArtifactError(f"{adapter.directory / CONFIG}: {field}: {error}") from None
    matrices = sizes_of(model, {name: fits.kinds[name] for name in ranks})
    for name, size in ranks.items():
        _require_shapes(adapter, fits, name, size.rank, matrices[name])
    return ranks


@dataclass(frozen=True)
class _Places:
    """Where the tensors of an adapter can belong in a model."""

    kinds: Mapping[str, str]  # of every module that the adapter may target
    stems: Mapping[str, str]  # of the same modules
    expected: Mapping[str, str]  # tensor name -> module
    whole: Mapping[str, tuple[int, ...]]  # tensor name -> shape, of what is saved beside adapters


def _find_places(adapter: Adapter, model: "PreTrainedModel") -> _Places:
    def is_meant(name: str, kind: str) -> bool:
        if kind not in FORMULAS[adapter.formula]:
            return False
        return kind not in EXPERTS or any(is_named(name, named) for named in adapter.parameters)

    kinds = {name: kind for name, kind in adaptable(model).items() if is_meant(name, kind)}
    stem = stems(kinds, kinds)
    expected = {
        f"{stem[name]}.{suffix}": name
        for name, kind in kinds.items()
        for suffix in adapter.suffixes(kind)
    }
    whole = {
        f"{PREFIX}{path}.{inner}": tuple(tensor.shape)
        for path in as_peft_matches(model, adapter.whole)
        for inner, tensor in model.get_submodule(path).state_dict().items()
    }
    for path, indices in rows_of(adapter, model).owned.items():
        width = model.get_submodule(path).weight.shape[1]  # type: ignore[index]
        whole[f"{PREFIX}{path}.{ROWS}"] = (len(indices), width)
    return _Places(kinds, stem, expected, whole)


def _same_twice(adapter: Adapter, model: "PreTrainedModel") -> set[str]:
    """The names of rows that PEFT saved twice: for the embedding, and for the head that shares
    them. Raises ArtifactError if the two differ."""
    found = set()
    for head, table in rows_of(adapter, model).shared.items():
        again, rows = (adapter.tensors.get(f"{PREFIX}{path}.{ROWS}") for path in (head, table))
        if again is not None:
            if rows is None or not torch.equal(again, rows):
                raise ArtifactError(
                    f"{adapter.directory / WEIGHTS}: {PREFIX}{head}.{ROWS} differs from the rows of"
                    f" {table}, which shares its weight with {head} in this model"
                )
            found.add(f"{PREFIX}{head}.{ROWS}")
    return found


def rows_of(adapter: Adapter, model: "PreTrainedModel") -> token_indices.RowPlaces:
    """The rows of a plain model that an adapter brings. Raises ArtifactError."""
    return token_indices.places(adapter.directory / CONFIG, adapter.rows, model)


def _require_shapes(
    adapter: Adapter, fits: _Places, name: str, rank: int, matrix: MatrixSize
) -> None:
    kind = fits.kinds[name]
    d_in, d_out, width = matrix.d_in, matrix.d_out, rank * matrix.stack
    starts_A, starts_B = zip(SUFFIXES[kind], STARTS[kind], strict=True)
    for suffix in adapter.suffixes(kind):
        shape: tuple[int, ...] = (d_out,)
        if suffix in starts_A or suffix in starts_B:
            shape = (width, d_in) if suffix in starts_A else (d_out, width)
        why = f"the rank r of {CONFIG} is {rank}, the layer is {d_in} -> {d_out}"
        _require_shape(adapter, f"{fits.stems[name]}.{suffix}", shape, why)


def _require_shape(adapter: Adapter, full: str, shape: tuple[int, ...], why: str) -> None:
    if (found := tuple(adapter.tensors[full].shape)) != shape:
        raise ArtifactError(
            f"{adapter.directory / WEIGHTS}: {full} has shape {list(found)}, expected"
            f" {list(shape)} ({why})"
        )


def own_weights(adapter: Adapter, modules: Mapping[str, str]) -> dict[str, Tensor]:
    """Copies of base weights that PEFT stores beside an adapter of embed_tokens or lm_head."""
    full = {name: f"{PREFIX}{name}.base_layer.weight" for name in modules}
    return {name: adapter.tensors[key] for name, key in full.items() if key in adapter.tensors}


def require_same(adapter: Adapter, name: str, copy: Tensor, weight: Tensor) -> None:
    """Raise ArtifactError if a copied base weight differs from the base's.

    On the meta device only shapes are compared.
    """
    same = copy.shape == weight.shape
    if same and not weight.is_meta:
        # Each is rounded to the other's dtype: PEFT may have held the base in another one.
        ours = weight.to(device=copy.device, dtype=copy.dtype)
        same = torch.equal(copy.to(weight.dtype).to(copy.dtype), ours)
    if not same:
        raise ArtifactError(
            f"{adapter.directory / WEIGHTS}: {PREFIX}{name}.base_layer.weight differs from the"
            " base's own weight; adapters that include a changed base are not supported"
        )


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)} in all)" if len(names) > 3 else "")


def load_(
    model: "PreTrainedModel", adapter: Adapter, *, dropout: float = 0.0
) -> dict[str, LoraLayer]:
    """Put an adapter into a model, which grows first if the adapter has rows for new tokens.

    Raises ArtifactError, with the model untouched, if they do not fit.
    """
    grown = vocabulary_size.fit_(model, adapter)
    try:
        ranks, rows = ranks_of(adapter, model), rows_of(adapter, model)
        paths = as_peft_matches(model, adapter.whole)
        _require_apart(adapter, ranks, paths, rows)
    except ArtifactError:
        if grown is not None:
            grown.undo_()
        raise
    layers = inject_(model, ranks, formula=adapter.formula, dropout=dropout)
    whole: dict[str, Saved] = {**train_whole_(model, paths)}
    whole |= train_rows_(model, rows.owned, rows.shared)
    restore_(layers, adapter.tensors, whole)
    return layers


def _require_apart(
    adapter: Adapter,
    ranks: Mapping[str, ModuleRank],
    whole: Sequence[str],
    rows: token_indices.RowPlaces,
) -> None:
    """PEFT cannot train rows of a module that it also adapts or trains whole."""
    for path in (*rows.owned, *rows.shared):
        if path in ranks or path in whole:
            raise ArtifactError(
                f"{adapter.directory / CONFIG}: {path} has rows of its own"
                f" ({token_indices.FIELD}) and is adapted or saved whole, expected only one of them"
            )


def add_to_hub_(hub: Hub, model: "PreTrainedModel", name: str, adapter: Adapter) -> None:
    """Put an adapter into the hub of this model.

    Raises ArtifactError, with the hub unchanged, if adapter and model do not fit.
    """
    hub.add_(name, stand_ins_of(adapter, model))


def stand_ins_of(adapter: Adapter, model: "PreTrainedModel") -> dict[str, StandIn]:
    """What an adapter puts in place of modules of a model, by path; the model is left unchanged,
    but for rows of new tokens that it lacked.

    Raises ArtifactError if the two do not fit.
    """
    load_(model, adapter)
    found = stand_ins(model)
    remove_(model)
    return found


def restore_(
    layers: Mapping[str, LoraLayer],
    tensors: Mapping[str, Tensor],
    whole: Mapping[str, Saved] | None = None,
) -> None:
    """Copy tensors by PEFT's names into adapted layers and modules trained whole, after names and
    shapes were checked. A layer whose rank has changed since it was made takes the tensors' rank.
    """
    with torch.no_grad():
        for name, parameter in parameters(layers, whole).items():
            if parameter.shape == tensors[name].shape:
                parameter.copy_(tensors[name])
            else:
                set_values_(parameter, tensors[name])
        for name, buffer in buffers(whole or {}).items():
            buffer.copy_(tensors[name])
    for name, stem in stems_of(layers).items():
        layer = layers[name]
        A0, B0 = (tensors.get(f"{stem}.{suffix}") for suffix in STARTS[layer.kind])
        if A0 is not None and B0 is not None:
            layer.count_from_(A0, B0)
