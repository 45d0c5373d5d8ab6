"""`loractl adapters combine`: one weighted combination of several adapters of one base."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from loractl import console
from loractl.commands.arguments import (
    parse_adapters,
    require_apart,
    require_free_or_adapter,
    require_word,
)
from loractl.engine.requests import HOW, RANDOM, SPARSE, Recipe
from loractl.errors import ConfigError


def run(
    directories: Sequence[str],
    weights: Sequence[str],
    recipe: Recipe,
    out: Path,
    *,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Combine adapters. Raises ArtifactError for incompatible ones."""
    recipe = complete_recipe(recipe)
    paths = parse_adapters(directories)
    if not paths:
        raise ConfigError("--adapter: found none, expected NAME=DIR for each adapter to combine")
    shares = parse_weights(weights, list(paths))
    require_free_or_adapter(out, overwrite=overwrite)

    from loractl.artifacts.peft import adapter as adapters
    from loractl.engine.combine import write_combined
    from loractl.reports.adapters import combine_as_text

    read = {name: adapters.read(path) for name, path in paths.items()}
    require_apart(out, *(one.directory for one in read.values()))
    report = write_combined(out, read, shares, recipe)
    console.result(json.dumps(report, indent=2) if as_json else combine_as_text(report))
    return 0


def complete_recipe(recipe: Recipe) -> Recipe:
    """The recipe with its defaults filled in. Raises ConfigError for conflicting options."""
    how = recipe.how.replace("-", "_")
    if how not in HOW:
        require_word("--how", recipe.how, HOW)
    if recipe.rank is not None and how != "svd":
        raise ConfigError(f"--rank: applies only to --how svd, not {how}")
    if how in SPARSE and recipe.density is None:
        raise ConfigError(f"--density: not set, expected the share that {how} keeps, such as 0.5")
    if recipe.density is not None and how not in SPARSE:
        raise ConfigError(f"--density: applies only to {', '.join(SPARSE)}, not {how}")
    if recipe.density is not None and not 0 < recipe.density <= 1:
        raise ConfigError(f"--density: found {recipe.density}, expected above 0 and at most 1")
    if recipe.seed is not None and how not in RANDOM:
        raise ConfigError(f"--seed: applies only to {', '.join(RANDOM)}; {how} is not random")
    seed = (recipe.seed or 0) if how in RANDOM else None
    return Recipe(how, recipe.rank, recipe.density, seed)


def parse_weights(weights: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Parse NAME=NUMBER for each adapter; 1 for those not named. Raises ConfigError."""
    found = dict.fromkeys(names, 1.0)
    given = set()
    for text in weights:
        name, _, number = text.partition("=")
        if name not in found:
            raise ConfigError(
                f"--weight: found {text!r}, expected NAME=NUMBER with one of {', '.join(names)}"
            )
        if name in given:
            raise ConfigError(f"--weight: found two weights for {name}, expected one")
        try:
            found[name] = float(number)
        except ValueError:
            raise ConfigError(
                f"--weight: found {text!r}, expected a number, as in {name}=0.5"
            ) from None
        if not math.isfinite(found[name]):
            raise ConfigError(f"--weight: found {text!r}, expected a finite number")
        given.add(name)
    return found
