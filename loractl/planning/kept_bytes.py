"""Memory that one micro-batch keeps for its backward pass, and that it uses while it computes.

It depends on the layers: fast_layer_bytes.py counts the hand-written ones, layer_bytes.py those of
transformers. Tests compare the counts with what autograd keeps for real models, and with what
torch's allocator hands out.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from loractl.lora.ranks import ModuleRank, layer_of
from loractl.models.shape.types import ModelShape
from loractl.planning import fast_layer_bytes, layer_bytes, logits
from loractl.planning.frameworks import LORACTL, Framework
from loractl.planning.work import Kept, Roles, Work

INDEX = 8
"""Bytes of the index of a trained token, kept where the trained tokens are picked out."""


def kept(
    shape: ModelShape,
    ranks: Mapping[str, ModuleRank],
    work: Work,
    framework: Framework = LORACTL,
) -> Kept:
    """Count what one micro-batch keeps; `ranks` names the adapted modules, none for method full."""
    twice = 2 if work.starts and framework.own_ops else 1  # `LoraLayer.factors`
    adapted = {path: twice * size.rank for path, size in ranks.items()}
    if fast_layer_bytes.takes(shape, adapted, work, framework):
        return _by_hand(shape, adapted, work, framework)
    return _by_transformers(shape, adapted, work, framework)


def _by_hand(
    shape: ModelShape, adapted: Mapping[str, int], work: Work, framework: Framework
) -> Kept:
    """With the layers of fast_layer_bytes.py: real tokens only, since padding never enters them."""
    tokens, width = work.real_tokens, work.width
    by_layer = _roles_by_layer(shape, adapted)
    deep = [
        by_layer.get(layer, {})
        for layer in range(_lowest_adapted(shape, adapted, work), shape.layers)
    ]
    known = {str(roles): roles for roles in deep}  # same adapters, same bytes
    costs = {key: fast_layer_bytes.layer(shape, roles, work) for key, roles in known.items()}
    largest = max(costs.values(), default=0)
    inputs = width * shape.hidden * len(deep)
    every = 0 if work.checkpointing else sum(costs[str(roles)] for roles in deep)
    casts = sum(fast_layer_bytes.factors(roles, work) for roles in deep)
    besides = (fast_layer_bytes.temporaries(shape, roles, work) for roles in known.values())
    above = layer_bytes.norm(shape, work) * tokens
    above += round(INDEX * logits.losses(work, framework))
    above += round(logits.input_kept(shape, adapted, work, framework) * work.tokens)
    return Kept(
        blocks=(inputs + every) * tokens,
        block=largest * tokens,
        outside=fast_layer_bytes.places(shape, work) * tokens + casts + above,
        temporaries=max(besides, default=0),
        logits=max(
            logits.peak(shape, adapted, work, framework),
            fast_layer_bytes.final_norm(shape, work) if deep else 0,
        ),
        logits_kept=logits.kept(shape, adapted, work, framework),
        above=above,
    )


def _by_transformers(
    shape: ModelShape, adapted: Mapping[str, int], work: Work, framework: Framework
) -> Kept:
    if framework.own_ops and work.formula != "dora" and not shape.experts:
        work = replace(work, dropout=0.0)  # `lora_linear` keeps nothing for dropout
    lowest, by_layer = _lowest_adapted(shape, adapted, work), _roles_by_layer(shape, adapted)
    costs: dict[str, float] = {}  # same adapters, same bytes
    per_layer = []
    for layer in range(lowest, shape.layers):
        roles = by_layer.get(layer, {})
        if str(roles) not in costs:
            costs[str(roles)] = layer_bytes.block(shape, roles, work, framework)
        per_layer.append(costs[str(roles)])
    tokens, width = work.tokens, work.width
    residual = 4 if work.autocast else width
    largest = max(per_layer, default=0)
    if work.checkpointing:
        blocks = len(per_layer) * residual * shape.hidden * tokens
    else:
        roles = by_layer.get(lowest, {})
        before = bool(per_layer) and not _from_start(shape, adapted, work)
        first = layer_bytes.before_first(shape, roles, work, framework) if before else 0
        blocks = max(0, round(sum(per_layer) - first)) * tokens
    angles = 0 if shape.rotary == "none" else 2 * width * shape.head_dim
    outside: float = angles + layer_bytes.norm(shape, work)  # bytes per token
    outside += logits.input_kept(shape, adapted, work, framework)
    return Kept(
        blocks=blocks,
        block=round(largest * tokens),
        outside=round(outside * tokens) + layer_bytes.casts(shape, adapted, work, framework),
        temporaries=layer_bytes.temporaries(shape, work) * tokens,
        logits=logits.peak(shape, adapted, work, framework),
        logits_kept=logits.kept(shape, adapted, work, framework),
    )


def _from_start(shape: ModelShape, adapted: Mapping[str, int], work: Work) -> bool:
    """Whether the embeddings, below all layers, need a gradient."""
    tables = any(shape.by_path[path].role == "embedding" for path in adapted)
    return work.full or work.trains_embedding or tables


def _lowest_adapted(shape: ModelShape, adapted: Mapping[str, int], work: Work) -> int:
    """The lowest layer with an adapter: below it, nothing needs a gradient or is kept."""
    if _from_start(shape, adapted, work):
        return 0
    return min((n for path in adapted if (n := _layer(path)) is not None), default=shape.layers)


def _roles_by_layer(shape: ModelShape, adapted: Mapping[str, int]) -> dict[int | None, Roles]:
    found: dict[int | None, dict[str, tuple[int, int, int]]] = {}
    for path, rank in adapted.items():
        module = shape.by_path[path]
        found.setdefault(_layer(path), {})[module.role] = (rank, module.d_in, module.d_out)
    return dict(found)


_layer = lru_cache(maxsize=1 << 14)(layer_of)
