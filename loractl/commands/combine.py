"""`loractl adapters combine`: one adapter from several, weighted, for the base they share."""

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl import console
from loractl.commands.adapters import about_made, require_effect
from loractl.commands.arguments import check_out, parse_adapters
from loractl.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import torch

    from loractl.artifacts.peft.adapter import Adapter
    from loractl.artifacts.peft.updates import Update
    from loractl.lora.spectrum import Factors

HOW = ("linear", "cat", "svd", "ties", "dare", "dare_ties")
SPARSE = ("ties", "dare", "dare_ties")
RANDOM = ("dare", "dare_ties")


@dataclass(frozen=True)
class Recipe:
    """How adapters are combined; what is None has its default or does not apply."""

    how: str
    rank: int | None = None
    density: float | None = None
    seed: int | None = None


def run(
    directories: Sequence[str],
    weights: Sequence[str],
    recipe: Recipe,
    out: Path,
    *,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Combine adapters. Raises ArtifactError for those that do not go together."""
    recipe = checked(recipe)
    paths = parse_adapters(directories)
    if not paths:
        raise ConfigError("--adapter: none given, expected NAME=DIR of each adapter to combine")
    shares = parse_weights(weights, list(paths))
    check_out(out, overwrite=overwrite)

    from loractl.artifacts import files
    from loractl.artifacts.peft import adapter as adapters
    from loractl.artifacts.peft import updates

    read = {name: adapters.read(path) for name, path in paths.items()}
    check_out(out, overwrite=overwrite, sources=tuple(one.directory for one in read.values()))
    _require_one_base(read)
    copied = _same_copies(read)
    parts = {name: updates.updates(adapter) for name, adapter in read.items()}
    largest = max(update.factors.rank for found in parts.values() for update in found.values())
    modules = sorted({module for found in parts.values() for module in found}, key=updates.in_order)
    made = {}
    for module in modules:
        present = {name: found[module] for name, found in parts.items() if module in found}
        made[module] = _combined(module, present, shares, recipe, largest=largest)
    require_effect(out, [one.norm for one in made.values()])
    settings = {key: value for key, value in asdict(recipe).items() if value is not None}
    about = about_made("combine", read, {**settings, "weights": shares})

    def write(directory: Path) -> None:
        updates.write_updates(
            directory,
            {module: (one.kind, one.factors) for module, one in made.items()},
            config=_config(read, modules),
            about=about,
            chat_template=_template(read),
            copied=copied,
        )

    files.publish(out, write)
    report = {"out": str(out), **settings, "weights": shares, **_report(made)}
    console.result(json.dumps(report, indent=2) if as_json else _as_text(report))
    return 0


@dataclass(frozen=True)
class Combined:
    """The combined update of one module, and how far it is from the exact sum of the updates."""

    kind: str
    factors: "Factors"
    norm: float
    norm_of_sum: float
    distance: float


def _report(made: Mapping[str, Combined]) -> dict[str, Any]:
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


def _as_text(report: Mapping[str, Any]) -> str:
    ranks = sorted({module["rank"] for module in report["modules"].values()})
    off = report["difference_from_sum"]
    of_sum = "the exact sum is zero" if off is None else f"{off:.2e} from the exact sum"
    listed = ", ".join(f"{weight:g} x {name}" for name, weight in report["weights"].items())
    return (
        f"{report['how']} of {listed}: {len(report['modules'])} modules, rank"
        f" {', '.join(map(str, ranks))}; relative distance {of_sum} of the updates\n{report['out']}"
    )


def checked(recipe: Recipe) -> Recipe:
    """The recipe with its defaults. Raises ConfigError for what does not go together."""
    how = recipe.how.replace("-", "_")
    if how not in HOW:
        near = difflib.get_close_matches(how, HOW, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--how: {recipe.how!r}, expected one of {', '.join(HOW)}{hint}")
    if recipe.rank is not None and how != "svd":
        raise ConfigError(f"--rank: only --how svd has a rank to choose, not {how}")
    if how in SPARSE and recipe.density is None:
        raise ConfigError(f"--density: missing, the share of values that {how} keeps, as 0.5")
    if recipe.density is not None and how not in SPARSE:
        raise ConfigError(f"--density: only for {', '.join(SPARSE)}, not {how}")
    if recipe.density is not None and not 0 < recipe.density <= 1:
        raise ConfigError(f"--density: {recipe.density}, expected a share above 0 and at most 1")
    if recipe.seed is not None and how not in RANDOM:
        raise ConfigError(f"--seed: nothing is drawn by {how}, only by {', '.join(RANDOM)}")
    seed = (recipe.seed or 0) if how in RANDOM else None
    return Recipe(how, recipe.rank, recipe.density, seed)


def parse_weights(weights: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Read NAME=NUMBER of each adapter; 1 for those not named. Raises ConfigError."""
    found = dict.fromkeys(names, 1.0)
    given = set()
    for text in weights:
        name, _, number = text.partition("=")
        if name not in found:
            raise ConfigError(
                f"--weight: {text!r}, expected NAME=NUMBER with one of {', '.join(names)}"
            )
        if name in given:
            raise ConfigError(f"--weight: {name} has two weights")
        try:
            found[name] = float(number)
        except ValueError:
            raise ConfigError(f"--weight: {text!r}, expected NAME=NUMBER, as {name}=0.5") from None
        if not math.isfinite(found[name]):
            raise ConfigError(f"--weight: {text!r}, expected a finite number")
        given.add(name)
    return found


def _require_one_base(read: Mapping[str, "Adapter"]) -> None:
    """Adapters of different bases do not add up, whatever their shapes."""
    (first, one), *rest = read.items()
    for name, other in rest:
        same_bytes = one.trained_on and one.trained_on == other.trained_on
        if one.trained_on and other.trained_on and not same_bytes:
            raise ArtifactError(
                f"{other.directory}: {name} was trained on another base than {first}: {other.base},"
                f" not {one.base} (their bytes differ)"
            )
        if not same_bytes and one.base != other.base:
            console.note(
                f"note: {first} names the base {one.base}, {name} names {other.base}; whether they"
                " are the same cannot be seen from the adapters"
            )


def _same_copies(read: Mapping[str, "Adapter"]) -> dict[str, "torch.Tensor"]:
    import torch

    from loractl.artifacts.peft import updates

    together: dict[str, torch.Tensor] = {}
    for adapter in read.values():
        for name, tensor in updates.copies(adapter, doing="combined").items():
            if name in together and not torch.equal(together[name], tensor):
                raise ArtifactError(
                    f"{adapter.directory}: {name} differs from that of another adapter; they belong"
                    " to different bases"
                )
            together[name] = tensor
    return together


def _combined(
    module: str,
    parts: Mapping[str, "Update"],
    weights: Mapping[str, float],
    recipe: Recipe,
    *,
    largest: int,
) -> Combined:
    """The combination of one module, from the adapters that have it."""
    import torch

    from loractl.lora.algebra import combine
    from loractl.lora.spectrum import distance, norm

    shapes = {
        name: (part.kind, part.factors.A.shape[1], part.factors.B.shape[0])
        for name, part in parts.items()
    }
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name}: {kind} {i} -> {o}" for name, (kind, i, o) in shapes.items())
        raise ArtifactError(f"{module}: the adapters were made for different models ({listed})")
    # Each module draws by its own name, so that the result does not depend on their order.
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
            f"{module}: {error}; use --how cat or svd, or adapters resize first"
        ) from None
    exact = combine(updates, shares, "cat")
    kind = next(iter(parts.values())).kind
    return Combined(kind, combined, norm(combined), norm(exact), distance(combined, exact))


def _config(read: Mapping[str, "Adapter"], modules: Sequence[str]) -> dict[str, Any]:
    """The first adapter's config; it targets the modules of all, by whole paths if they differ."""
    from loractl.artifacts.peft.updates import TARGETING, config_of

    configs = [config_of(adapter) for adapter in read.values()]
    config = dict(configs[0])

    def targets(one: Mapping[str, Any]) -> list[Any]:
        found = [one.get(field) for field in TARGETING]
        return [sorted(value) if isinstance(value, list) else value for value in found]

    if any(targets(other) != targets(config) for other in configs):
        config |= dict.fromkeys(TARGETING) | {"target_modules": list(modules)}
    config["fan_in_fan_out"] = any(bool(one.get("fan_in_fan_out")) for one in configs)
    return config


def _template(read: Mapping[str, "Adapter"]) -> str | None:
    """The chat template of the first adapter that has one."""
    found = {adapter.chat_template: name for name, adapter in read.items() if adapter.chat_template}
    if len(found) > 1:
        first = next(name for name, adapter in read.items() if adapter.chat_template)
        console.note(f"note: the adapters' chat templates differ; that of {first} is kept")
    return next((one.chat_template for one in read.values() if one.chat_template), None)
