"""Rows of single tokens in an adapter (PEFT's trainable_token_indices): which, and where they go.

PEFT 0.21 wraps every module whose path ends with a name of the config; a list without names is for
the input embedding. Where the head shares the embedding's weight, it shares its rows too, unless
the config gives the two different ones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl.errors import ArtifactError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIELD = "trainable_token_indices"
EMBEDDING = ""
"""The name under which a list without names is kept."""
MOST_ROWS = 1 << 20
"""More rows than this beyond the base's are a damaged file: no vocabulary grows by a million."""


@dataclass(frozen=True)
class RowPlaces:
    """Which rows of which modules an adapter has, by path."""

    owned: Mapping[str, tuple[int, ...]]
    shared: Mapping[str, str]  # the head -> the embedding whose rows it shares


def read(path: Path, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The rows that a config names, by module name. Raises ArtifactError."""
    given = config.get(FIELD)
    if not given:
        return {}
    named = given if isinstance(given, dict) else {EMBEDDING: given}
    for name, indices in named.items():
        whole = isinstance(indices, list) and all(type(one) is int for one in indices)
        if not whole or not indices or min(indices) < 0 or len(set(indices)) < len(indices):
            raise ArtifactError(
                f"{path}: {FIELD} is {json.dumps(given)[:80]}, expected different ids of tokens, as"
                " a list or by the name of a module"
            )
        if name != EMBEDDING and name in (config.get("modules_to_save") or []):
            raise ArtifactError(
                f"{path}: {name} is in {FIELD} and in modules_to_save, expected only one of them"
            )
    return {name: tuple(indices) for name, indices in named.items()}


def places(path: Path, rows: Mapping[str, tuple[int, ...]], model: "PreTrainedModel") -> RowPlaces:
    """The modules of a plain model that an adapter has rows for. Raises ArtifactError."""
    if not rows:
        return RowPlaces({}, {})
    table, head = ends(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    is_tied = head is not None and _weight(modules[head]) is _weight(modules[table])
    owned: dict[str, tuple[int, ...]] = {}
    for name, indices in rows.items():
        found = [p for p in modules if p.endswith(name)] if name != EMBEDDING else [table]
        strange = next((p for p in found if p not in (table, head)), None)
        if not found or strange:
            raise ArtifactError(
                f"{path}: {FIELD}: {name} is {strange or 'no module of the model'}, expected the"
                f" embedding or the head ({table}, {head}); rows of others are not supported"
            )
        owned |= dict.fromkeys(found, indices)
    shared: dict[str, str] = {}
    same = table in owned and owned.get(head or "", owned[table]) == owned[table]
    if is_tied and head is not None and same:
        owned.pop(head, None)
        shared[head] = table
    if head in (owned.keys() | shared.keys()) and getattr(modules[head], "bias", None) is not None:
        raise ArtifactError(
            f"{path}: {FIELD}: {head} has a bias, which PEFT leaves out where rows of a head are"
            " trained; this is not supported"
        )
    return RowPlaces(owned, shared)


def ends(model: "PreTrainedModel") -> tuple[str, str | None]:
    """The paths of the embedding and of the head, if there is one."""
    table: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    paths = {id(module): path for path, module in model.named_modules()}
    return paths[id(table)], None if head is None or head is table else paths[id(head)]


def _weight(module: Any) -> Any:
    return module.weight
