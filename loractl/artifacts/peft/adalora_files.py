"""AdaLoRA adapters in files: PEFT's own layout for checkpoints, plain LoRA when published.

PEFT 0.21 keeps A, B and the values E separate, with scale alpha / init_r however many triplets are
left. Every reader accepts plain LoRA: diag(E) goes into A, and so does the remaining factor of the
scale, since all modules share one alpha and only ranks differ.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from loractl.artifacts.peft.names import PREFIX, SUFFIXES, TRIPLETS
from loractl.errors import ArtifactError
from loractl.lora.adalora import AdaloraLayer, Budget, Smoothing

STATE = "adalora.safetensors"
"""Beside a checkpoint's adapter: the state of the rank allocation (`Allocator.tensors`)."""


def checkpoint_content(
    plain: Mapping[str, Any],
    *,
    rank: int,
    target: int,
    scale: float,
    budget: Budget,
    smoothing: Smoothing,
    orthogonality: float,
) -> dict[str, Any]:
    """The content of a checkpoint's adapter_config.json, from that of a plain adapter.

    `rank` and `target` are per module.
    """
    return {
        **plain,
        "peft_type": "ADALORA",
        "r": 8,  # PEFT's default, which it expects here
        "init_r": rank,
        "target_r": target,
        "lora_alpha": scale * rank,
        "use_rslora": False,
        "tinit": budget.warmup,
        "tfinal": budget.final,
        "total_step": budget.total,
        "deltaT": budget.every,
        "beta1": smoothing.beta1,
        "beta2": smoothing.beta2,
        "orth_reg_weight": orthogonality,
        "rank_pattern": None,
    }


def plain(
    triplets: Mapping[str, tuple[Tensor, Tensor, Tensor]], scale: float, *, rank: int | None = None
) -> tuple[dict[str, tuple[Tensor, Tensor]], int, float]:
    """(A, B, E) by module -> A and B of plain LoRA, their most common rank, and one alpha for all.

    Triplets that are switched off are left out, and so are modules with no others. `rank` is the
    rank that alpha refers to; None: the most common.
    """
    kept = {
        name: (A[on] * E[on], B[:, on])
        for name, (A, B, E) in triplets.items()
        if bool((on := E[:, 0] != 0).any())
    }
    if not kept:  # nothing was trained: an update of zero, which readers report
        kept = {name: (A * E, B) for name, (A, B, E) in triplets.items()}
    counted = Counter(A.shape[0] for A, _ in kept.values())
    common = rank or max(counted, key=lambda found: (counted[found], found))
    alpha = scale * common
    folded = {
        name: (A * (A.shape[0] / common), B) for name, (A, B) in kept.items()
    }  # alpha / k is scale * common / k
    return folded, common, alpha


def plain_of(
    layers: Mapping[str, AdaloraLayer],
) -> tuple[dict[str, tuple[Tensor, Tensor]], int, float]:
    """`plain` of the layers of a model."""
    triplets = {n: (x.A.detach(), x.B.detach(), x.E.detach()) for n, x in layers.items()}
    scales = {layer.scale for layer in layers.values()}
    assert len(scales) == 1, f"scales {scales}"
    return plain(triplets, scales.pop())


def folded(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An AdaLoRA adapter as read -> config and tensors of the same update in plain LoRA.

    Raises ArtifactError naming the field or the tensor.
    """
    rank, alpha = config.get("init_r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ArtifactError(f"{path}: init_r is {json.dumps(rank)[:80]}, expected a whole number")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < 1e30:
        raise ArtifactError(
            f"{path}: lora_alpha is {json.dumps(alpha)[:80]}, expected a number above 0"
        )
    kind_of: dict[str, str] = {}
    rest = dict(tensors)
    triplets: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for kind in ("linear", "embedding"):
        ends = [f".{suffix}" for suffix in TRIPLETS[kind]]
        for full in [name for name in tensors if name.endswith(ends[2])]:
            stem = full.removesuffix(ends[2])
            A, B, E = (rest.pop(stem + end, None) for end in ends)
            if A is None or B is None or E is None:
                raise ArtifactError(
                    f"{path.parent}: {stem} lacks one of {', '.join(TRIPLETS[kind])}"
                )
            k = E.shape[0]
            if not (A.dim() == B.dim() == E.dim() == 2 and A.shape[0] == B.shape[1] == k <= rank):
                shapes = ", ".join(str(list(one.shape)) for one in (A, B, E))
                raise ArtifactError(
                    f"{path.parent}: {stem}: A, B and E have shapes {shapes}, expected [k, d_in],"
                    f" [d_out, k] and [k, 1] with k at most init_r ({rank})"
                )
            if k:
                triplets[stem], kind_of[stem] = (A.float(), B.float(), E.float()), kind
    if not triplets:
        raise ArtifactError(f"{path.parent}: found no module with lora_A, lora_B and lora_E")
    pairs, common, plain_alpha = plain(triplets, alpha / rank)
    for stem, pair in pairs.items():
        named = zip(SUFFIXES[kind_of[stem]], pair, strict=True)
        rest |= {f"{stem}.{suffix}": factor for suffix, factor in named}
    pattern = {
        stem.removeprefix(PREFIX): len(A) for stem, (A, _) in pairs.items() if len(A) != common
    }
    same = {"r": common, "lora_alpha": plain_alpha, "rank_pattern": pattern, "alpha_pattern": {}}
    plain_config = {**config, **same, "peft_type": "LORA", "use_rslora": False}
    return plain_config, rest
