"""An adapter directory as updates by module, read and written without its base model.

For operations on adapters themselves: resizing, combining, extracting, inspecting. The files and
their format are left to `adapter`.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loractl.artifacts import files
from loractl.artifacts.peft.adapter import CONFIG, WEIGHTS, Adapter, write
from loractl.artifacts.peft.names import PREFIX, ROWS, STARTS, SUFFIXES
from loractl.errors import ArtifactError
from loractl.lora.experts import PRODUCTS, unpacked
from loractl.lora.ranks import UnmatchedError, is_named, sizes
from loractl.lora.spectrum import Factors

OWN_COPY = ".base_layer.weight"  # PEFT stores copies of adapted embeddings and heads


@dataclass(frozen=True)
class Update:
    """The update of one module. A file alone does not reveal a Conv1D: it counts as linear."""

    kind: str  # linear or embedding
    factors: Factors
    alpha: float


def updates(adapter: Adapter) -> dict[str, Update]:
    """The update of every module by its path, in the order of layers.

    Fused experts are listed one by one, as <parameter>[0] and so on. Raises ArtifactError for
    missing halves and wrong shapes.
    """
    where = adapter.directory / WEIGHTS
    pairs: dict[str, tuple[str, Tensor, Tensor]] = {}
    for name in adapter.tensors:
        for kind in ("linear", "embedding"):
            suffix_A, suffix_B = (f".{suffix}" for suffix in SUFFIXES[kind])
            suffix = next((s for s in (suffix_A, suffix_B) if name.endswith(s)), None)
            if suffix is None or not name.startswith(PREFIX):
                continue
            stem = name.removesuffix(suffix)
            for half in (stem + suffix_A, stem + suffix_B):
                if half not in adapter.tensors:
                    raise ArtifactError(f"{where}: 1 tensor is missing: {half}, which {name} needs")
            module = stem.removeprefix(PREFIX)
            pairs[module] = kind, adapter.tensors[stem + suffix_A], adapter.tensors[stem + suffix_B]
    if not pairs:
        first = next(iter(adapter.tensors), "nothing")
        raise ArtifactError(
            f"{where}: found {first}, expected names such as {PREFIX}<module>.lora_A.weight"
        )
    experts = _name_experts(adapter, list(pairs))
    pairs = {experts.get(module, module): pair for module, pair in pairs.items()}
    try:
        ranks = sizes(adapter.spec, pairs)
    except UnmatchedError as error:
        field = error.key.removeprefix("lora.")
        raise ArtifactError(f"{adapter.directory / CONFIG}: {field}: {error}") from None
    found = {}
    for module in sorted(pairs, key=in_order):
        kind, A, B = pairs[module]
        size = ranks[module]
        stack = A.shape[0] // size.rank if module in experts.values() else 1
        if not (A.dim() == B.dim() == 2 and A.shape[0] == B.shape[1] == size.rank * stack):
            raise ArtifactError(
                f"{where}: {PREFIX}{module}: A has shape {list(A.shape)} and B {list(B.shape)},"
                f" expected [{size.rank}, d_in] and [d_out, {size.rank}] (the rank r of {CONFIG} is"
                f" {size.rank})"
            )
        if adapter.has_starts:
            A, B = _counted_from_start(adapter, f"{PREFIX}{module}", kind, A, B)
        if module not in experts.values():
            found[module] = Update(kind, Factors(A, B, size.scale), size.alpha)
            continue
        for e, (A_e, B_e) in enumerate(zip(*unpacked(A, B, stack), strict=True)):
            found[f"{module}[{e}]"] = Update(kind, Factors(A_e, B_e, size.scale), size.alpha)
    return found


def _name_experts(adapter: Adapter, stems: list[str]) -> dict[str, str]:
    """The parameter that each module of a file represents, for fused experts.

    PEFT nests the parameters of one module, the first in the model's order innermost.
    """
    found: dict[str, str] = {}
    for stem in (stem for stem in stems if not stem.endswith(".base_layer")):
        full = [f"{stem}.{product}" for product in PRODUCTS]
        named = [name for name in full if any(is_named(name, t) for t in adapter.parameters)]
        levels = [stem + ".base_layer" * behind for behind in range(len(named))]
        if named and all(level in stems for level in levels):
            found |= dict(zip(levels, reversed(named), strict=True))
    return found


def _counted_from_start(
    adapter: Adapter, stem: str, kind: str, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor]:
    """A and B of B A - B0 A0 = (B - B0) A + B0 (A - A0), of twice the rank; see `LoraLayer`."""
    A0, B0 = (adapter.tensors.get(f"{stem}.{suffix}") for suffix in STARTS[kind])
    if A0 is None or B0 is None or A0.shape != A.shape or B0.shape != B.shape:
        raise ArtifactError(
            f"{adapter.directory / WEIGHTS}: {stem}: the initial A and B ({STARTS[kind][0]},"
            f" {STARTS[kind][1]}) are missing or have another shape"
        )
    return torch.cat([A, A - A0]), torch.cat([B - B0, B0], dim=1)


def in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer 2 before layer 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part) if part.isdigit() else -1, part) for part in parts]


def tensors_beside(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors that are not part of a low-rank update, by their names in the file."""
    ours = {suffix for ends in (SUFFIXES, STARTS) for pair in ends.values() for suffix in pair}
    return {
        name: tensor
        for name, tensor in adapter.tensors.items()
        if not any(name.endswith(f".{suffix}") for suffix in ours)
    }


def copies(adapter: Adapter, *, doing: str, with_rows: bool = False) -> dict[str, Tensor]:
    """The copies of base weights in an adapter, to be passed on; `with_rows` those of single tokens
    too, which are not part of an update.

    Raises ArtifactError if it holds anything else that is not a low-rank update, such as DoRA's
    magnitudes: then it changes a weight by more than s B A.
    """
    if adapter.parameters:
        raise ArtifactError(
            f"{adapter.directory / CONFIG}: target_parameters: updates of fused experts cannot be"
            f" {doing}"
        )
    if adapter.rows and not with_rows:
        raise ArtifactError(
            f"{adapter.directory}: it has rows of new tokens, and rows of new tokens cannot be"
            f" {doing}; use the adapters one at a time, or merge this one"
        )
    rest = tensors_beside(adapter)
    passed = (OWN_COPY, f".{ROWS}")
    strange = sorted(name for name in rest if not name.endswith(passed))
    if strange:
        raise ArtifactError(
            f"{adapter.directory / WEIGHTS}: {strange[0]} ({len(strange)} such tensors) is not part"
            f" of a plain low-rank update, and only those can be {doing}; merge the adapter, then"
            " use adapters extract"
        )
    return rest


TARGETING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""The fields of adapter_config.json by which PEFT finds modules."""


def config_of(adapter: Adapter) -> dict[str, Any]:
    """The adapter's own config, which names the base so that it is found from anywhere."""
    config = files.read_json(adapter.directory / CONFIG)
    return config | ({"base_model_name_or_path": adapter.base} if adapter.base else {})


def write_updates(
    directory: Path,
    updated: Mapping[str, tuple[str, Factors]],
    *,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    chat_template: str | None,
    copied: Mapping[str, Tensor] | None = None,
) -> None:
    """Write updates (kind, factors of scale 1) in PEFT's layout, with alpha = rank everywhere.

    `config` gives every field except ranks and scales. The most common rank becomes r, the others
    go to rank_pattern and alpha_pattern.
    """
    tensors = dict(copied or {})
    for name, (kind, factors) in updated.items():
        assert factors.scale == 1.0, f"{name} has scale {factors.scale}"
        for suffix, tensor in zip(SUFFIXES[kind], (factors.A, factors.B), strict=True):
            tensors[f"{PREFIX}{name}.{suffix}"] = tensor
    counted = Counter(factors.rank for _, factors in updated.values())
    rank = max(counted, key=lambda found: (counted[found], found))
    pattern = {n: f.rank for n, (_, f) in sorted(updated.items()) if f.rank != rank}
    sized = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "use_rslora": False,
        "init_lora_weights": True,
    }
    write(directory, tensors, config={**config, **sized}, about=about, chat_template=chat_template)
