"""Which modules get an adapter, and its rank, alpha and scale: from names and settings, no torch.

Training, the memory estimate and the readers of adapter files all use this, so that they agree.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

EXPERTS = ("experts", "experts-transposed")  # one parameter holds the weights of all experts
LINEAR = ("linear", "conv1d", *EXPERTS)
SEPARATE_QV = {"q_proj", "v_proj", "query", "value", "q_lin", "v_lin", "wq", "wv"}
FUSED_QKV = {"c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv", "in_proj_qkv", "att_proj"}

SCALES: dict[str, Callable[[float, int], float]] = {
    "standard": lambda alpha, rank: alpha / rank,  # LoRA, arXiv 2106.09685, section 4.1
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),  # rsLoRA, arXiv 2312.03732, theorem 3.2
}


def alpha_of(scale: float, rank: int, scaling: str) -> float:
    """The alpha that gives this scale at this rank."""
    return scale / SCALES[scaling](1.0, rank)


class UnmatchedError(ValueError):
    """A setting names modules or layers that the model does not have; `key` is the setting."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class ModuleRank:
    """The size of one module's adapter; its update is scaled by `scale`."""

    rank: int
    alpha: float
    scale: float


@dataclass(frozen=True)
class RankSpec:
    """The settings of the `lora` section that decide where adapters go and how large they are."""

    rank: int
    alpha: float
    target_modules: str | Sequence[str] = "all-linear"
    scaling: str = "standard"
    layers: Sequence[int] | str | None = None
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None


def resolve(
    spec: RankSpec, modules: Mapping[str, str], *, head: str | None = None
) -> dict[str, ModuleRank]:
    """Determine the adapters of a model.

    `modules` maps the path of every module that can carry one to its kind: linear, conv1d or
    embedding; `head` is the path of the output head, which `all-linear` leaves out. Raises
    UnmatchedError when a name, pattern or layer of `spec` matches nothing: modules that are
    silently left untrained are the most common mistake in this field.
    """
    chosen = _in_layers(spec.layers, _targets(spec.target_modules, modules, head))
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(spec, field) or {}:
            if not any(_fits(pattern, name, f"lora.{field}") for name in chosen):
                raise UnmatchedError(f"lora.{field}", f"{pattern!r} matches no targeted module")
    return sizes(spec, chosen)


def sizes(spec: RankSpec, names: Iterable[str]) -> dict[str, ModuleRank]:
    """Rank, alpha and scale of each module: from the first matching pattern, else the spec's own.

    Raises UnmatchedError for a pattern that is not a valid regex.
    """
    resolved = {}
    for name in names:
        rank = int(_first_fit(spec.rank_pattern, name, spec.rank, "lora.rank_pattern"))
        alpha = _first_fit(spec.alpha_pattern, name, spec.alpha, "lora.alpha_pattern")
        resolved[name] = ModuleRank(rank, alpha, SCALES[spec.scaling](alpha, rank))
    return resolved


def not_low(ranks: Mapping[str, ModuleRank], shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """The modules whose A and B hold at least as many values as the weight: r >= d k / (d + k).

    `shapes` gives the (d, k) of each weight.
    """
    return [
        name
        for name, size in ranks.items()
        if size.rank * sum(shapes[name]) >= math.prod(shapes[name])
    ]


def _first_fit(patterns: Mapping[str, float] | None, name: str, default: float, key: str) -> float:
    fitting = (value for pattern, value in (patterns or {}).items() if _fits(pattern, name, key))
    return next(fitting, default)


def _fits(pattern: str, name: str, key: str) -> bool:
    """Whether a pattern matches the end of a module's path, as PEFT reads its pattern keys."""
    return _compiled(rf"(.*\.)?({pattern})$", pattern, key).match(name) is not None


def _compiled(regex: str, written: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except (re.error, OverflowError, RecursionError) as error:
        raise UnmatchedError(key, f"{written!r} is not a valid regex: {error}") from None


def _targets(
    wanted: str | Sequence[str], modules: Mapping[str, str], head: str | None
) -> list[str]:
    linear = [name for name, kind in modules.items() if kind in LINEAR and name != head]
    attention = [name for name in linear if _is_attention(name)]
    qv = SEPARATE_QV | FUSED_QKV
    presets = {
        "all-linear": linear,
        "attention": attention,
        "minimal": [name for name in attention if _last(name) in qv],
    }
    if isinstance(wanted, str):
        if wanted in presets:
            found = presets[wanted]
        else:
            regex = _compiled(wanted, wanted, "lora.target_modules")
            found = [name for name in modules if regex.fullmatch(name)]
        if not found:
            raise UnmatchedError("lora.target_modules", _no_match(wanted, modules, presets))
        return found
    for name in wanted:
        if not any(is_named(module, name) for module in modules):
            raise UnmatchedError("lora.target_modules", _no_match(name, modules, {}))
    return [module for module in modules if any(is_named(module, name) for name in wanted)]


def is_named(module: str, name: str) -> bool:
    """Whether a listed name is this module's whole path or its end, as PEFT reads lists."""
    return module == name or module.endswith("." + name)


def _is_attention(path: str) -> bool:
    parents = path.lower().split(".")[:-1]
    return any("attn" in parent or "attention" in parent for parent in parents)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _no_match(wanted: str, modules: Mapping[str, str], presets: Iterable[str]) -> str:
    names = sorted({_last(module) for module in modules})
    near = difflib.get_close_matches(wanted, [*names, *presets], n=1)
    listed = ", ".join(names)
    if wanted in names:
        return (
            f"{wanted!r} as a string is a regex for whole paths; to name modules, write [{wanted}]"
        )
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{wanted!r} matches no module of the model, which has: {listed}{hint}"


def _in_layers(layers: Sequence[int] | str | None, names: list[str]) -> list[str]:
    if layers is None:
        return names
    wanted = parse_layers(layers)
    if not wanted:
        raise UnmatchedError("lora.layers", "found an empty list, expected block numbers")
    there = {layer for name in names if (layer := layer_of(name)) is not None}
    # A range is walked only up to its first missing block, however large it is.
    missing = next((layer for layer in wanted if layer not in there), None)
    if missing is not None:
        most = f"blocks 0 to {max(there)}" if there else "no numbered blocks"
        raise UnmatchedError("lora.layers", f"no block {missing}; the targeted modules have {most}")
    return [name for name in names if layer_of(name) in wanted]


def layer_of(path: str) -> int | None:
    """The number of the block a module belongs to: the first number in its path."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def parse_layers(layers: Sequence[int] | str) -> Sequence[int]:
    """Read a list of block numbers or an inclusive range such as '8-15'."""
    if not isinstance(layers, str):
        return layers
    match = re.fullmatch(r"\s*(\d{1,18})\s*-\s*(\d{1,18})\s*", layers)
    if match is None or int(match[1]) > int(match[2]):
        raise UnmatchedError(
            "lora.layers", f"found {layers!r}, expected a list or a range such as 8-15"
        )
    return range(int(match[1]), int(match[2]) + 1)
