"""The difference between two models as an adapter: compared tensor by tensor, written for PEFT."""

import math
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from loractl import __version__
from loractl.artifacts.model.pair import ModelPair
from loractl.artifacts.peft import config as peft_config
from loractl.artifacts.peft import updates
from loractl.artifacts.peft.adapter import find_template
from loractl.engine.requests import ExtractRequest
from loractl.errors import ArtifactError
from loractl.lora.algebra import Cut
from loractl.lora.extract import extract
from loractl.lora.ranks import ModuleRank, RankSpec
from loractl.lora.spectrum import Factors, effective_rank, rank_keeping
from loractl.models.fingerprints import fingerprint
from loractl.progress import Progress
from loractl.reports.extract import Change, Findings

STRIP = 1 << 22
"""Values of a tensor that are held in float64 at a time: 32 MiB."""


def find_changes(pair: ModelPair, asked: ExtractRequest) -> Findings:
    """Go through both models once, with one tensor of each and their difference in memory."""
    found = Findings({}, {}, {}, 0, set(), 0.0, 0.0)
    names, began = pair.names, time.perf_counter()
    with Progress(len(names), log_every=max(1, len(names) // 4)) as progress:
        for step, (name, old, new) in enumerate(pair.tensors(), start=1):
            if old.is_floating_point():
                found.dtypes.add(f"{old.dtype} -> {new.dtype}".replace("torch.", ""))
            change = _measure_change(old, new)
            if not math.isfinite(change.norm) or not math.isfinite(change.base_norm):
                raise ArtifactError(f"{name}: contains values that are not finite (NaN or Inf)")
            _add_tensor(found, pair, asked, name, old, new, change)
            progress.step(
                step, name, seconds_left=(time.perf_counter() - began) / step * (len(names) - step)
            )
    return found


def _measure_change(old: Tensor, new: Tensor) -> Change:
    """Norms of the difference and of the old tensor, computed in strips."""
    moved = size = 0.0
    olds, news = old.flatten(), new.flatten()
    for start in range(0, len(olds), STRIP):
        one, other = (flat[start : start + STRIP].double() for flat in (olds, news))
        moved += float((other - one).square().sum())
        size += float(one.square().sum())
    return Change(math.sqrt(moved), math.sqrt(size))


def _add_tensor(
    found: Findings,
    pair: ModelPair,
    asked: ExtractRequest,
    name: str,
    old: Tensor,
    new: Tensor,
    change: Change,
) -> None:
    if change.norm == 0:
        found.unchanged += 1
        return
    found.changed_energy += change.norm**2
    module = name.removesuffix(".weight")
    kind = pair.kinds.get(module) if name.endswith(".weight") else None
    if kind is None or (kind == "embedding" and not asked.embeddings):
        reason = "an embedding: --embeddings includes it" if kind else "not a linear layer's matrix"
        found.rest[name] = change, reason
        return

    difference = new.float() - old.float()
    delta = difference if kind == "linear" else difference.T  # (d_out, d_in)
    cut = extract(delta, rank=asked.rank, energy=asked.energy)
    found.kept_energy += cut.kept * change.norm**2
    found.updates[module] = ("embedding" if kind == "embedding" else "linear", cut.factors)
    found.modules[module] = _report_row(kind, delta, change, cut)
    head = pair.head
    if module == pair.table and pair.base.tied and pair.tuned.tied and head is not None:
        # The head multiplies by the same table, so its update is the transpose.
        A, B = cut.factors.B.T.contiguous(), cut.factors.A.T.contiguous()
        found.updates[head] = "linear", Factors(A, B)
        found.modules[head] = _report_row("linear", delta.T, change, cut)


def _report_row(kind: str, delta: Tensor, change: Change, cut: Cut) -> dict[str, Any]:
    sigma = cut.sigma
    return {
        "kind": kind,
        "d_out": delta.shape[0],
        "d_in": delta.shape[1],
        "relative_change": change.relative,
        "rank": cut.factors.rank,
        "kept_energy": cut.kept,
        "error": cut.error,
        # A randomized projection does not give the whole spectrum.
        "effective_rank": None if sigma is None else effective_rank(sigma),
        "rank_90": None if sigma is None else rank_keeping(sigma, 0.9),
    }


def nothing_found(tuned: str, base: str, found: Findings) -> str:
    """Explain why there is no adapter."""
    if not found.rest:
        return f"{tuned}: no tensor differs from {base}; there is nothing to extract"
    reasons = sorted({reason for _, reason in found.rest.values()})
    return (
        f"{tuned}: differs from {base} only in tensors that this adapter would not cover:"
        f" {', '.join(list(found.rest)[:3])} ({'; '.join(reasons)})"
    )


def write_adapter(directory: Path, pair: ModelPair, asked: ExtractRequest, found: Findings) -> None:
    """Write the findings as an adapter of the base."""
    ranks = {name: ModuleRank(one.rank, one.rank, 1.0) for name, (_, one) in found.updates.items()}
    top = max(size.rank for size in ranks.values())
    config = peft_config.content(
        ranks,
        [name for name, _ in pair.base.skeleton.named_modules()],
        spec=RankSpec(rank=top, alpha=top),
        kinds=pair.kinds,
        dropout=0.0,
        base=pair.base.source.address,
    )
    prints = [fingerprint(side.source) for side in (pair.base, pair.tuned)]
    about = {
        "loractl": __version__,
        "base": {"name_or_path": pair.base.source.address, "fingerprint": prints[0]},
        "made": {
            "by": "adapters extract",
            "from": {"name_or_path": pair.tuned.source.address, "fingerprint": prints[1]},
            "kept_energy": found.kept_energy / found.changed_energy,
            "not_expressed": sorted(found.rest),
            **asked.size,
        },
    }
    updates.write_updates(
        directory,
        found.updates,
        config=config,
        about=about,
        chat_template=find_template(pair.tuned.source.directory),
    )
