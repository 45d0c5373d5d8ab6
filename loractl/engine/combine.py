"""The heavy half of `loractl adapters combine`: the updates of each module are combined."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from loractl import console
from loractl.artifacts import files
from loractl.artifacts.peft import updates
from loractl.artifacts.peft.adapter import Adapter, copy_tokenizer
from loractl.artifacts.peft.updates import Update
from loractl.engine.made_adapters import about_made, require_effect
from loractl.engine.requests import Recipe
from loractl.errors import ArtifactError
from loractl.lora.algebra import combine
from loractl.lora.spectrum import Factors, distance, norm


def write_combined(
    out: Path, read: Mapping[str, Adapter], shares: Mapping[str, float], recipe: Recipe
) -> dict[str, Any]:
    """Write the combination; return its ranks, norms and distance from the exact sum.

    Raises ArtifactError for adapters that cannot be combined.
    """
    _require_one_base(read)
    copied = _copies_of_all(read)
    parts = {name: updates.updates(adapter) for name, adapter in read.items()}
    largest = max(update.factors.rank for found in parts.values() for update in found.values())
    modules = sorted({module for found in parts.values() for module in found}, key=updates.in_order)
    made = {}
    for module in modules:
        present = {name: found[module] for name, found in parts.items() if module in found}
        made[module] = _combine_module(module, present, shares, recipe, largest=largest)
    require_effect(out, [one.norm for one in made.values()])
    settings = {key: value for key, value in asdict(recipe).items() if value is not None}
    about = about_made("combine", read, {**settings, "weights": shares})

    def write(directory: Path) -> None:
        updates.write_updates(
            directory,
            {module: (one.kind, one.factors) for module, one in made.items()},
            config=_combined_config(read, modules),
            about=about,
            chat_template=_first_template(read),
            copied=copied,
        )
        for adapter in [one for one in read.values() if one.brings_tokenizer][:1]:
            copy_tokenizer(adapter, directory)

    files.publish(out, write)
    return {"out": str(out), **settings, "weights": shares, **_report_distances(made)}


@dataclass(frozen=True)
class Combined:
    """The combined update of one module, and its distance from the exact sum of the updates."""

    kind: str
    factors: Factors
    norm: float
    norm_of_sum: float
    distance: float


def _report_distances(made: Mapping[str, Combined]) -> dict[str, Any]:
    total = math.fsum(one.norm_of_sum**2 for one in made.values())
    off = math.fsum(one.distance**2 for one in made.values())
    return {
        "difference_from_sum": math.sqrt(off / total) if total else None,
        "modules": {
            module: {
                "rank": one.factors.rank,
                "norm": one.norm,
                "difference_from_sum": one.distance / one.norm_of_sum if one.norm_of_sum else None,
            }
            for module, one in made.items()
        },
    }


def _require_one_base(read: Mapping[str, Adapter]) -> None:
    """Adapters of different bases do not add up, whatever their shapes."""
    (first, one), *rest = read.items()
    for name, other in rest:
        same_bytes = one.trained_on and one.trained_on == other.trained_on
        if one.trained_on and other.trained_on and not same_bytes:
            raise ArtifactError(
                f"{other.directory}: {name} was trained on a different base than {first}:"
                f" {other.base}, not {one.base} (their bytes differ)"
            )
        if not same_bytes and one.base != other.base:
            console.note(
                f"note: {first} names the base {one.base}, {name} names {other.base}; the adapters"
                " do not show whether these are the same"
            )


def _copies_of_all(read: Mapping[str, Adapter]) -> dict[str, torch.Tensor]:
    together: dict[str, torch.Tensor] = {}
    for adapter in read.values():
        for name, tensor in updates.copies(adapter, doing="combined").items():
            if name in together and not torch.equal(together[name], tensor):
                raise ArtifactError(
                    f"{adapter.directory}: {name} differs from the one in another adapter; they"
                    " belong to different bases"
                )
            together[name] = tensor
    return together


def _combine_module(
    module: str,
    parts: Mapping[str, Update],
    weights: Mapping[str, float],
    recipe: Recipe,
    *,
    largest: int,
) -> Combined:
    """Combine one module over the adapters that have it."""
    shapes = {
        name: (part.kind, part.factors.A.shape[1], part.factors.B.shape[0])
        for name, part in parts.items()
    }
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name}: {kind} {i} -> {o}" for name, (kind, i, o) in shapes.items())
        raise ArtifactError(f"{module}: the adapters were made for different models ({listed})")
    # The seed depends on the module's name, so that the order of modules does not matter.
    digest = hashlib.sha256(f"{recipe.seed}:{module}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    updates = [part.factors for part in parts.values()]
    shares = [weights[name] for name in parts]
    try:
        combined = combine(
            updates,
            shares,
            recipe.how,
            rank=recipe.rank or largest,
            density=recipe.density or 1.0,
            generator=generator,
        )
    except ValueError as error:
        raise ArtifactError(
            f"{module}: {error}; use --how cat or svd, or run adapters resize first"
        ) from None
    exact = combine(updates, shares, "cat")
    kind = next(iter(parts.values())).kind
    return Combined(kind, combined, norm(combined), norm(exact), distance(combined, exact))


def _combined_config(read: Mapping[str, Adapter], modules: Sequence[str]) -> dict[str, Any]:
    """The first adapter's config, targeting the modules of all: by full path if they differ."""
    configs = [updates.config_of(adapter) for adapter in read.values()]
    config = dict(configs[0])

    def targets(one: Mapping[str, Any]) -> list[Any]:
        found = [one.get(field) for field in updates.TARGETING]
        return [sorted(value) if isinstance(value, list) else value for value in found]

    if any(targets(other) != targets(config) for other in configs):
        config |= dict.fromkeys(updates.TARGETING) | {"target_modules": list(modules)}
    config["fan_in_fan_out"] = any(bool(one.get("fan_in_fan_out")) for one in configs)
    return config


def _first_template(read: Mapping[str, Adapter]) -> str | None:
    """The chat template of the first adapter that has one."""
    found = {adapter.chat_template: name for name, adapter in read.items() if adapter.chat_template}
    if len(found) > 1:
        first = next(name for name, adapter in read.items() if adapter.chat_template)
        console.note(f"note: the adapters' chat templates differ; the one of {first} is kept")
    return next((one.chat_template for one in read.values() if one.chat_template), None)
