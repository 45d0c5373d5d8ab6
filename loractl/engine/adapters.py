"""What a config adds to a base model: adapters, modules trained in full, and changes of rank."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from loractl import console
from loractl.artifacts.peft import names as peft_names
from loractl.config.conflicts import adalora_steps, past_the_end
from loractl.config.loader import Loaded
from loractl.config.optimizers import OPTIMIZERS
from loractl.config.settings import RunConfig, first_rank
from loractl.engine.new_tokens import NewTokens, places_of
from loractl.lora.adalora import AdaloraLayer, Allocator, Budget, Smoothing
from loractl.lora.dense import MatrixSize
from loractl.lora.init import PART_INITS
from loractl.lora.inject import FORMULAS, adaptable, inject_, sizes_of
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import ModuleRank, RankSpec, UnmatchedError, not_low, resolve
from loractl.lora.token_rows import Saved, train_rows_
from loractl.lora.whole import matching, train_whole_
from loractl.models import load
from loractl.models.streamed_layers import layer_of, streams
from loractl.quant.linear import packed_layers
from loractl.training.rank_schedule import RankSchedule
from loractl.training.steps import RankPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Adapted:
    """What was added to a model; empty for method: full."""

    layers: dict[str, LoraLayer]
    whole: dict[str, Saved]  # trained beside the adapters: modules, or rows of them
    module_names: tuple[str, ...]  # of the plain base, as adapter files use them

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by PEFT's names."""
        return peft_names.parameters(self.layers, self.whole)


def rank_spec(config: RunConfig) -> RankSpec:
    """The part of the config that decides where adapters go and how large they start."""
    lora = config.lora
    assert lora.alpha is not None, "resolve() fills alpha in"
    return RankSpec(
        rank=first_rank(config.method, rank=lora.rank, initial_rank=lora.adalora.initial_rank),
        alpha=lora.alpha,
        target_modules=lora.target_modules,
        scaling=lora.scaling,
        layers=lora.layers,
        rank_pattern=lora.rank_pattern,
        alpha_pattern=lora.alpha_pattern,
    )


def adapt_(model: "PreTrainedModel", loaded: Loaded, new: NewTokens) -> Adapted:
    """Add fresh adapters, modules to train in full and rows of new tokens to a model, which has
    grown to them. Raises ConfigError."""
    config = loaded.config
    kinds = adaptable(model)
    names = tuple(name for name, _ in model.named_modules())
    try:
        ranks = resolve(rank_spec(config), kinds, head=load.head_name(model))
    except UnmatchedError as error:
        raise loaded.error(error.key, str(error)) from None
    out_of_reach = [name for name in ranks if kinds[name] not in FORMULAS[config.method]]
    if out_of_reach or (config.lora.rank_schedule and any("experts" in kinds[n] for n in ranks)):
        first = (out_of_reach or [n for n in ranks if "experts" in kinds[n]])[0]
        key = "method" if out_of_reach else "lora.rank_schedule"
        raise loaded.error(
            key,
            f"does not support fused experts such as {first}; leave them out of"
            " lora.target_modules, or use method: lora with one rank",
        )
    whole = _whole(model, loaded, ranks)
    rows = places_of(model, loaded, new, ranks, whole)
    _check_widths(loaded, ranks, sizes_of(model, {n: kinds[n] for n in ranks}))
    layers = inject_(
        model,
        ranks,
        formula=config.method,
        init=config.lora.init,
        dropout=config.lora.dropout,
        seed=config.seed,
    )
    saved: dict[str, Saved] = {**train_whole_(model, whole)}
    saved |= train_rows_(model, rows.owned, rows.shared)
    return Adapted(layers, saved, names)


def _whole(model: "PreTrainedModel", loaded: Loaded, ranks: dict[str, ModuleRank]) -> list[str]:
    """The paths selected by lora.modules_to_save, none of which may overlap with an adapter."""
    found: list[str] = []
    for name in loaded.config.lora.modules_to_save:
        # of a packed layer, or of a module that has one inside
        parts = (f"{path}." for path in packed_layers(model))
        if part := next((p for p in parts if f".{name}." in f".{p}"), None):
            raise loaded.error(
                "lora.modules_to_save",
                f"found {name!r}, but {part[:-1]} is quantized and cannot be trained; remove it, or"
                " use a base that is not quantized",
            )
    for name, paths in matching(model, loaded.config.lora.modules_to_save).items():
        if not paths:
            last = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if n})
            raise loaded.error(
                "lora.modules_to_save",
                f"{name!r} matches no module with parameters; the model has {', '.join(last)}",
            )
        found += [path for path in paths if path not in found]
    for path in found if streams(model) else ():
        if layer_of(f"{path}.") is not None:
            raise loaded.error(
                "lora.modules_to_save",
                f"{path} is trained whole, and model.offload only reads layers; remove one of them",
            )
    for path in found:
        inside = next((n for n in ranks if f"{n}.".startswith(f"{path}.")), None)
        outer = next((other for other in found if path.startswith(f"{other}.")), None)
        if inside or outer:
            what = f"contains {inside}, which gets an adapter" if inside else f"is inside {outer}"
            raise loaded.error("lora.modules_to_save", f"{path} {what}; remove one of them")
    return found


def _check_widths(
    loaded: Loaded, ranks: dict[str, ModuleRank], matrices: dict[str, MatrixSize]
) -> None:
    """Note where an adapter is as large as its weight; refuse an init that needs a higher rank."""
    weights = {name: (matrix.d_out, matrix.d_in) for name, matrix in matrices.items()}
    largest = max([0, *loaded.config.lora.rank_schedule.values()])
    grown = {name: replace(size, rank=max(size.rank, largest)) for name, size in ranks.items()}
    if found := not_low(grown, weights):
        name = found[0]
        d, k = weights[name]
        console.note(
            f"note: {len(found)} adapters have at least as many values as their weights, the first:"
            f" {name} at rank {grown[name].rank}, where only ranks below {d * k / (d + k):.4g} save"
            " any; lower lora.rank, or its rank in lora.rank_pattern"
        )
    init = loaded.config.lora.init
    for name, shape in weights.items():
        if init in PART_INITS and ranks[name].rank > min(shape):
            raise loaded.error(
                "lora.init",
                f"{init} decomposes each weight, and {name} has a lower rank than"
                f" {ranks[name].rank}; lower lora.rank, or its rank in lora.rank_pattern",
            )


def check_phases(loaded: Loaded, total_steps: int) -> None:
    """Refuse changes of rank that the run is too short for. Raises ConfigError."""
    config = loaded.config
    if config.method == "adalora" and (wrong := adalora_steps(config.lora.adalora, total_steps)):
        raise loaded.error("lora.adalora", wrong)
    last = max([0, *config.lora.rank_schedule])
    if last > total_steps:
        raise loaded.error("lora.rank_schedule", past_the_end(last, total_steps))


def rank_policy(
    config: RunConfig,
    layers: dict[str, LoraLayer],
    optimizer: torch.optim.Optimizer,
    total_steps: int,
) -> RankPolicy | None:
    """The policy that changes ranks during the run; None if there is none."""
    if config.method == "adalora":
        triplets = {n: layer for n, layer in layers.items() if isinstance(layer, AdaloraLayer)}
        return Allocator(
            triplets,
            budget(config, len(triplets), total_steps),
            smoothing=smoothing(config),
            orthogonality=config.lora.adalora.orthogonality,
        )
    if config.lora.rank_schedule:
        return RankSchedule(
            layers,
            config.lora.rank_schedule,
            optimizer,
            init=config.lora.init,
            seed=config.seed,
            kind=OPTIMIZERS[config.train.optimizer],
        )
    return None


def budget(config: RunConfig, modules: int, total_steps: int) -> Budget:
    """AdaLoRA's rank budget over a run, summed over `modules` modules."""
    adalora = config.lora.adalora
    return Budget(
        initial=adalora.initial_rank * modules,
        target=adalora.target_rank * modules,
        warmup=adalora.warmup_steps,
        final=adalora.final_steps,
        total=total_steps,
        every=adalora.every,
    )


def smoothing(config: RunConfig) -> Smoothing:
    return Smoothing(config.lora.adalora.beta1, config.lora.adalora.beta2)
