"""What the page knows of each model: its modules, memory as curves over the rank, recommendations.

Everything is computed by `planning`, as for `loractl estimate` and `loractl recommend`; the page's
own arithmetic (counting.js) adds up, and is tested against both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loractl.dtypes import WIDTHS
from loractl.lora.ranks import UnmatchedError
from loractl.models.shape import read as shapes
from loractl.models.shape.sizes import SIZES
from loractl.models.shape.types import ModelShape
from loractl.planning import by_rank, recommend
from loractl.planning.by_rank import PRESETS, Adapters, Curve
from loractl.planning.recommend import FEW, MANY, Rows
from loractl.planning.request import Request, chosen

OWN = "own"
"""The model, or the target modules, of the user's config: neither a known size nor a preset."""
ROWS = {"unknown": None, "few": FEW // 2, "some": (FEW + MANY) // 2, "many": 10 * MANY}
"""Classes of data that the recommendation tells apart -> a number of rows in each."""


def all_models(
    name: str, shape: ModelShape, request: Request, stops: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """The asked model and every known size, for the ranks of `stops`. `name`: a size, or what is
    shown for another model.

    Two ranks are enough for the known sizes, all of whose layers are alike. Raises UnmatchedError
    if the targets of the request match nothing.
    """
    few = (1, 2) if by_rank.is_straight(request.optimizer) else stops
    known = {
        size: table_of(size, one.hub, shapes.named(size), _without_own(request), few)
        for size, one in SIZES.items()
        if size != name
    }
    if name not in SIZES:
        return {OWN: table_of(name, name, shape, request, stops), **known}
    asked = table_of(name, SIZES[name].hub, shape, request, few)
    return {size: known.get(size, asked) for size in SIZES}


def targets_of(request: Request) -> str:
    """The preset that a request names, or OWN."""
    wanted, is_whole = request.target_modules, request.layers is None and not request.rank_pattern
    return wanted if isinstance(wanted, str) and wanted in PRESETS and is_whole else OWN


def formulas_of(request: Request) -> tuple[str, ...]:
    """The formulas to compute memory for: LoRA's, DoRA's, and AdaLoRA's where it is asked for."""
    return ("lora", "dora", "adalora") if request.method == "adalora" else ("lora", "dora")


def table_of(
    name: str, hub: str, shape: ModelShape, request: Request, stops: Sequence[int]
) -> dict[str, Any]:
    """Everything about one model, as JSON."""
    return {
        "name": name,
        "hub": hub,
        "architecture": shape.architecture,
        "parameters": shape.parameters,
        "hidden": shape.hidden,
        "layers": shape.layers,
        "bytes": WIDTHS[request.dtype] * shape.parameters,
        "kinds": [
            {
                "name": kind.name, "path": kind.path, "kind": kind.kind, "d_in": kind.d_in,
                "d_out": kind.d_out, "stack": kind.stack, "layers": _packed(kind.layers),
            }
            for kind in by_rank.kinds_of(shape)
        ],
        "beside": by_rank.beside(shape, request),
        "full": _both(
            lambda again: _memory(shape, request, "full", dict.fromkeys((1, 2), {}), again)
        ),
        "targets": _targets(shape, request, stops),
        "recommended": _recommended(shape),
    }  # fmt: skip


def _targets(
    shape: ModelShape, request: Request, stops: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """The presets that match, and the request's own targets if they are none of them."""
    asked = {one: replace(request, target_modules=one, layers=None, rank_pattern=None)
             for one in PRESETS}  # fmt: skip
    if targets_of(request) == OWN:
        asked = {OWN: request, **asked}
    found = {}
    for name, one in asked.items():
        try:
            adapters = by_rank.adapters_at(shape, one, stops)
        except UnmatchedError:
            if name == targets_of(request):
                raise
            continue
        found[name] = _target(shape, one, adapters)
    return found


def _target(shape: ModelShape, request: Request, adapters: Adapters) -> dict[str, Any]:
    whole = [kind.layers for kind in by_rank.kinds_of(shape)]
    # A variant that the request trains on a packed base is counted on one.
    packed = {request.method} - {"lora"} if chosen(request) == "qlora" else set()
    methods = {
        formula: (formula, "qlora" if formula in packed else "lora")
        for formula in formulas_of(request)
    }
    methods["qlora"] = ("lora", "qlora")
    return {
        "chosen": [
            [one.kind, None if one.layers == whole[one.kind] else _packed(one.layers), one.rank]
            for one in by_rank.chosen_of(shape, adapters)
        ],
        "flops": by_rank.flop_curves(shape, request, adapters),
        "memory": {
            name: _both(
                lambda again, formula=formula, method=method: _memory(
                    shape, replace(request, method=formula), method, adapters, again
                )
            )
            for name, (formula, method) in methods.items()
        },
    }


def _both(compute: Any) -> list[Any]:
    """Without and with checkpointing."""
    return [compute(False), compute(True)]


def _memory(
    shape: ModelShape, request: Request, method: str, adapters: Adapters, checkpointing: bool
) -> dict[str, dict[str, Curve]]:
    curves = by_rank.memory_curves(shape, request, method, adapters, checkpointing=checkpointing)
    return {
        phase: {part: curve for part, curve in parts.items() if curve != (0, 0)}
        for phase, parts in curves.items()
    }


def _recommended(shape: ModelShape) -> dict[str, dict[str, dict[str, Any]]]:
    """Task -> class of data -> values of `loractl recommend`."""
    return {
        task: {name: _values(task, shape, rows) for name, rows in ROWS.items()}
        for task in recommend.RANKS
    }


def _values(task: str, shape: ModelShape, rows: int | None) -> dict[str, Any]:
    wanted = ("rank", "alpha", "target_modules", "sweep", "learning_rate", "effective_batch")
    found = recommend.choices(task, shape, None if rows is None else Rows(rows))
    return {key: found[key].value for key in wanted}


def sources() -> Mapping[str, str]:
    """Where each recommended value comes from."""
    found = recommend.choices("medium", shapes.named("7B"), None)
    return {key: choice.source for key, choice in found.items()}


def _without_own(request: Request) -> Request:
    """The request without what names modules of the user's own model."""
    preset = targets_of(request)
    return replace(
        request, target_modules="all-linear" if preset == OWN else preset, layers=None,
        rank_pattern=None, modules_to_save=(), new_tokens=0,
    )  # fmt: skip


def _packed(layers: Sequence[int | None]) -> int | list[int | None]:
    """The number of layers where they are the first ones, else their numbers."""
    return len(layers) if list(layers) == list(range(len(layers))) else list(layers)
