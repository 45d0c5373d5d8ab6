"""adapter_config.json in PEFT 0.21's form: write ours, read anyone's, refuse the unsupported."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loractl.errors import ArtifactError
from loractl.lora.init import PART_INITS
from loractl.lora.ranks import EXPERTS, ModuleRank, RankSpec, is_named

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (True, False, None),
    "lora_bias": (False, None),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "ensure_weight_tying": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    # pissa, olora, corda, loftq and lora_ga also change the base weight, which the adapter lacks;
    # our checkpoints of the first two hold the starting A and B, which carry the same information.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva", "pissa", "olora"),
}
"""Fields that change what an adapter computes, and the values that this version supports."""


def content(
    ranks: Mapping[str, ModuleRank],
    all_modules: Iterable[str],
    *,
    spec: RankSpec,
    kinds: Mapping[str, str],
    dropout: float,
    base: str,
    init: str = "default",
    formula: str = "lora",
    whole: Iterable[str] = (),
    rows: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """The content of adapter_config.json, so that PEFT finds exactly the modules of `ranks`.

    `whole` lists the paths of modules that are trained whole, `rows` those of which some rows are.
    """
    layers = [name for name in ranks if kinds[name] not in EXPERTS]
    experts = [name for name in ranks if kinds[name] in EXPERTS]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        # PEFT allows no dropout with fused experts, and rejects it even for inference
        "lora_dropout": dropout if not experts else 0.0,
        "target_modules": _shortest_names(layers, all_modules),
        "target_parameters": experts or None,
        "bias": "none",
        "use_rslora": spec.scaling == "rslora",
        "use_dora": formula == "dora",
        "rank_pattern": {n: m.rank for n, m in ranks.items() if m.rank != spec.rank},
        "alpha_pattern": {n: m.alpha for n, m in ranks.items() if m.alpha != spec.alpha},
        "modules_to_save": list(whole) or None,
        **({"trainable_token_indices": _by_short_name(rows, all_modules)} if rows else {}),
        "layers_to_transform": None,
        "layers_pattern": None,
        "init_lora_weights": init if init in PART_INITS else True,
        "fan_in_fan_out": any(kinds[name] == "conv1d" for name in layers),
        "inference_mode": True,
    }


def starts_at_parts(config: Mapping[str, Any]) -> bool:
    """Whether A and B start at parts of the base's weights, and are measured from there."""
    return config.get("init_lora_weights") in PART_INITS


def doubled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an adapter on the plain base with twice the rank and the same scales.

    s = alpha / r, or alpha / sqrt(r) with rsLoRA: alpha grows with r, or with its square root.
    """
    wider = math.sqrt(2) if config["use_rslora"] else 2
    return {
        **config,
        "r": 2 * config["r"],
        "lora_alpha": wider * config["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in config["rank_pattern"].items()},
        "alpha_pattern": {name: wider * a for name, a in config["alpha_pattern"].items()},
        "init_lora_weights": True,
    }


def _shortest_names(targets: list[str], all_modules: Iterable[str]) -> list[str]:
    """Last names such as q_proj if they match exactly these modules, else full paths."""
    last = sorted({name.rpartition(".")[2] for name in targets})
    meant = {name for name in all_modules if any(is_named(name, short) for short in last)}
    return last if meant == set(targets) else sorted(targets)


def _by_short_name(
    rows: Mapping[str, Sequence[int]], all_modules: Iterable[str]
) -> dict[str, list[int]]:
    """The rows by the last name of their module, or by its path if PEFT, which goes by how a path
    ends, would find others by that name."""
    names = list(all_modules)
    found = {}
    for path, indices in rows.items():
        last = path.rpartition(".")[2]
        alone = [name for name in names if name.endswith(last)] == [path]
        found[last if alone else path] = list(indices)
    return found


def spec(path: Path, config: Mapping[str, Any]) -> RankSpec:
    """The ranks and scales in a config. Raises ArtifactError naming the file and the field.

    Which modules are adapted is decided by the names of the tensors.
    """

    def refuse(field: str, expected: str) -> ArtifactError:
        found = json.dumps(config.get(field))
        return ArtifactError(f"{path}: {field} is {found[:80]}, expected {expected}")

    if config.get("peft_type") != "LORA":
        raise refuse("peft_type", '"LORA"')
    for field, held in NEUTRAL.items():
        if field == "ensure_weight_tying" and ties_only_rows(config):
            continue
        if field in config and config[field] not in held:
            found = json.dumps(config[field])
            raise ArtifactError(f"{path}: {field} is {found[:80]}, which is not supported")
    rank: Any = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise refuse("r", "a whole number of at least 1 (the rank)")
    alpha: Any = config.get("lora_alpha")
    if not _is_positive(alpha):
        raise refuse("lora_alpha", "a number above 0")
    for field in ("rank_pattern", "alpha_pattern"):
        value = config.get(field) or {}
        if not isinstance(value, dict) or not all(map(_is_positive, value.values())):
            raise refuse(field, "an object of numbers above 0")
    for field in ("modules_to_save", "target_parameters"):
        value = config.get(field) or []
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise refuse(field, "a list of names")
    if config.get("use_rslora") not in (True, False, None):
        raise refuse("use_rslora", "true or false")
    if not isinstance(config.get("base_model_name_or_path"), str | None):
        raise refuse("base_model_name_or_path", "a directory, a file or a hub id")
    return RankSpec(
        rank=rank,
        alpha=alpha,
        scaling="rslora" if config.get("use_rslora") else "standard",
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
    )


def ties_only_rows(config: Mapping[str, Any]) -> bool:
    """Whether an adapter has nothing to tie in a head and an embedding but rows of single tokens,
    which are tied anyway."""
    return bool(config.get("trainable_token_indices")) and not config.get("modules_to_save")


def _is_positive(value: Any) -> bool:
    # The bound keeps huge integers out of float arithmetic, where they overflow.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30
