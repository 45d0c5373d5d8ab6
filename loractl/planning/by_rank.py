"""A model as a table of its modules, and its memory as curves over the rank.

Adapters, their gradients, the optimizer's state and the A x kept for the backward pass all grow by
the same bytes with each rank, so two ranks give all others, and a page without Python can show any
of them. There are two exceptions: optimizers that treat small and large tensors differently, and
models whose layers differ, where the largest may be another one at another rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from loractl.config.optimizers import OPTIMIZERS
from loractl.lora.ranks import ModuleRank, layer_of
from loractl.models.shape.types import ModelShape, Module
from loractl.planning import counts
from loractl.planning.request import Request, memory_of, ranks_of

Curve = tuple[int, ...]
"""The value at rank 0 and what each rank adds; or, if longer, the value at each of the ranks."""
Adapters = Mapping[int, Mapping[str, ModuleRank]]
"""Rank -> the adapters of a request at this rank, which differ in nothing else."""
PRESETS = ("minimal", "attention", "all-linear")


@dataclass(frozen=True)
class Kind:
    """Modules of one name and size. `path` has a # where their layer's number stands; `layers` is
    (None,) for a module that is in no layer."""

    name: str
    path: str
    kind: str
    d_in: int
    d_out: int
    stack: int
    layers: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """The modules of a kind that get adapters. `rank`: their own, or None for the common one."""

    kind: int  # index into the kinds
    layers: tuple[int | None, ...]
    rank: int | None = None


def kinds_of(shape: ModelShape) -> list[Kind]:
    """The modules of a model by name and size, in the order of the first of each."""
    layers: dict[Kind, list[int | None]] = {}
    for module in shape.modules:
        layers.setdefault(_kind_of(module), []).append(layer_of(module.path))
    return [replace(kind, layers=tuple(found)) for kind, found in layers.items()]


def adapters_at(shape: ModelShape, request: Request, ranks: Sequence[int]) -> Adapters:
    """The adapters of a request at two ranks or more. Raises UnmatchedError."""
    return {rank: ranks_of(shape, replace(request, rank=rank)) for rank in ranks}


def is_straight(optimizer: str) -> bool:
    """Whether the state of an optimizer depends only on how many values are trained."""
    return OPTIMIZERS[optimizer].others is None


def chosen_of(shape: ModelShape, adapters: Adapters) -> list[Chosen]:
    """The adapters by kind of module; a rank that is the same at all ranks is a module's own."""
    first, second, *_ = adapters.values()
    index = {replace(kind, layers=()): number for number, kind in enumerate(kinds_of(shape))}
    found: dict[tuple[int, int | None], list[int | None]] = {}
    for path, size in first.items():
        fixed = size.rank if size.rank == second[path].rank else None
        key = (index[_kind_of(shape.by_path[path])], fixed)
        found.setdefault(key, []).append(layer_of(path))
    return [Chosen(kind, tuple(layers), rank) for (kind, rank), layers in found.items()]


def beside(shape: ModelShape, request: Request) -> int:
    """Values that are trained besides A and B: modules trained whole, and rows of new tokens."""
    whole = counts.saved_whole(shape, request.modules_to_save)
    return whole + counts.new_rows(shape, request.new_tokens)


def memory_curves(
    shape: ModelShape, request: Request, method: str, adapters: Adapters, *, checkpointing: bool
) -> dict[str, dict[str, Curve]]:
    """Phase -> part -> its curve. `method` is full, lora or qlora, as in `estimate`."""
    found = {
        rank: memory_of(
            shape, replace(request, rank=rank), method, checkpointing=checkpointing, ranks=ranks
        ).phases
        for rank, ranks in adapters.items()
    }
    first = next(iter(found.values()))
    return {
        phase: {
            part: _curve({rank: phases[phase][part] for rank, phases in found.items()})
            for part in parts
        }
        for phase, parts in first.items()
    }


def flop_curves(shape: ModelShape, request: Request, adapters: Adapters) -> dict[str, Curve]:
    """The products of a step, as `counts.flops` counts them, each as a curve."""
    found = {
        rank: asdict(counts.flops(shape, ranks, batch=request.batch, length=request.length))
        for rank, ranks in adapters.items()
    }
    first = next(iter(found.values()))
    return {name: _curve({rank: one[name] for rank, one in found.items()}) for name in first}


def _curve(values: Mapping[int, int]) -> Curve:
    """The line through the values, or the values themselves where there is none."""
    (rank, value), (other, at_other), *_ = values.items()
    slope = (at_other - value) // (other - rank)
    start = value - rank * slope
    is_straight = all(start + rank * slope == value for rank, value in values.items())
    return (start, slope) if is_straight else tuple(values.values())


def _kind_of(module: Module) -> Kind:
    """The kind of a module, without its layers."""
    layer = layer_of(module.path)
    parts = module.path.split(".")
    if layer is not None:
        parts[parts.index(str(layer))] = "#"
    path = ".".join(parts)
    return Kind(module.name, path, module.kind, module.d_in, module.d_out, module.stack)
