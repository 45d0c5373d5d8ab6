"""`loractl adapters extract`: the adapter that comes nearest to what changed between two models.

What share of the change it keeps, layer by layer, is the low-rank hypothesis measured.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl import __version__, console
from loractl.commands.adapters import require_size
from loractl.commands.arguments import check_out
from loractl.errors import ArtifactError
from loractl.reports.extract import Change, Findings, as_text, notes, report_of

if TYPE_CHECKING:
    from torch import Tensor

    from loractl.artifacts.model.pair import ModelPair
    from loractl.lora.algebra import Cut


STRIP = 1 << 22
"""Values of a tensor that are in float64 at a time: 32 MiB."""


@dataclass(frozen=True)
class ExtractRequest:
    """What to extract: a rank or a share of the energy, of tables too or not."""

    rank: int | None
    energy: float | None
    embeddings: bool


def run(
    base: str, tuned: str, out: Path, *, asked: ExtractRequest, overwrite: bool, as_json: bool
) -> int:
    """Extract an adapter. Raises ArtifactError where nothing differs that it could express."""
    require_size(asked.rank, asked.energy)
    check_out(out, overwrite=overwrite)

    from loractl.artifacts import files
    from loractl.artifacts.model.pair import open_pair
    from loractl.models import load

    sources = [load.locate(_model_of(name)) for name in (base, tuned)]
    check_out(out, overwrite=overwrite, sources=tuple(one.directory for one in sources))
    pair = open_pair(*sources)
    found = _look(pair, asked)
    if not found.updates:
        raise ArtifactError(_nothing(tuned, base, found))
    report = report_of(out, size_of(asked), found)
    files.publish(out, lambda directory: _write(directory, pair, asked, found))
    for line in notes(found, pair.head):
        console.note(line)
    console.result(json.dumps(report, indent=2) if as_json else as_text(report))
    return 0


def _model_of(name: str) -> str:
    """A run of method: full means the model in it."""
    inside = Path(name) / "model"
    return str(inside) if (inside / "config.json").is_file() else name


def size_of(asked: ExtractRequest) -> dict[str, float | None]:
    """The one of rank and energy that was asked for, by its name."""
    return {"rank": asked.rank} if asked.rank else {"energy": asked.energy}


def _look(pair: "ModelPair", asked: ExtractRequest) -> Findings:
    """Go through both models once; a tensor of each is in memory, and their difference."""
    found = Findings({}, {}, {}, 0, set(), 0.0, 0.0)
    names, began = pair.names, time.perf_counter()
    with console.Progress(len(names), log_every=max(1, len(names) // 4)) as progress:
        for step, (name, old, new) in enumerate(pair.tensors(), start=1):
            if old.is_floating_point():
                found.dtypes.add(f"{old.dtype} -> {new.dtype}".replace("torch.", ""))
            change = _change(old, new)
            if not math.isfinite(change.norm) or not math.isfinite(change.base_norm):
                raise ArtifactError(f"{name}: holds values that are not finite (NaN or Inf)")
            _add(found, pair, asked, name, old, new, change)
            progress.step(
                step, name, seconds_left=(time.perf_counter() - began) / step * (len(names) - step)
            )
    return found


def _change(old: "Tensor", new: "Tensor") -> Change:
    """Norms of the difference and of the old tensor, in strips."""
    moved = size = 0.0
    olds, news = old.flatten(), new.flatten()
    for start in range(0, len(olds), STRIP):
        one, other = (flat[start : start + STRIP].double() for flat in (olds, news))
        moved += float((other - one).square().sum())
        size += float(one.square().sum())
    return Change(math.sqrt(moved), math.sqrt(size))


def _add(
    found: Findings,
    pair: "ModelPair",
    asked: ExtractRequest,
    name: str,
    old: "Tensor",
    new: "Tensor",
    change: Change,
) -> None:
    if change.norm == 0:
        found.unchanged += 1
        return
    found.changed_energy += change.norm**2
    module = name.removesuffix(".weight")
    kind = pair.kinds.get(module) if name.endswith(".weight") else None
    if kind is None or (kind == "embedding" and not asked.embeddings):
        reason = "an embedding: --embeddings takes it in" if kind else "no matrix of a linear layer"
        found.rest[name] = change, reason
        return

    from loractl.lora.extract import extract
    from loractl.lora.spectrum import Factors

    difference = new.float() - old.float()
    delta = difference if kind == "linear" else difference.T  # (d_out, d_in)
    cut = extract(delta, rank=asked.rank, energy=asked.energy)
    found.kept_energy += cut.kept * change.norm**2
    found.updates[module] = ("embedding" if kind == "embedding" else "linear", cut.factors)
    found.modules[module] = _row(kind, delta, change, cut)
    head = pair.head
    if module == pair.table and pair.base.tied and pair.tuned.tied and head is not None:
        # The head multiplies by the same table: its update is the transposed one.
        A, B = cut.factors.B.T.contiguous(), cut.factors.A.T.contiguous()
        found.updates[head] = "linear", Factors(A, B)
        found.modules[head] = _row("linear", delta.T, change, cut)


def _row(kind: str, delta: "Tensor", change: Change, cut: "Cut") -> dict[str, Any]:
    from loractl.lora.spectrum import effective_rank, rank_keeping

    sigma = cut.sigma
    return {
        "kind": kind,
        "d_out": delta.shape[0],
        "d_in": delta.shape[1],
        "relative_change": change.relative,
        "rank": cut.factors.rank,
        "kept_energy": cut.kept,
        "error": cut.error,
        # Of a projection the spectrum is not known whole.
        "effective_rank": None if sigma is None else effective_rank(sigma),
        "rank_90": None if sigma is None else rank_keeping(sigma, 0.9),
    }


def _nothing(tuned: str, base: str, found: Findings) -> str:
    if not found.rest:
        return f"{tuned}: no tensor differs from {base}; there is nothing to extract"
    reasons = sorted({reason for _, reason in found.rest.values()})
    return (
        f"{tuned}: differs from {base} only in what no adapter was asked to express:"
        f" {', '.join(list(found.rest)[:3])} ({'; '.join(reasons)})"
    )


def _write(directory: Path, pair: "ModelPair", asked: ExtractRequest, found: Findings) -> None:

    from loractl.artifacts.peft import config as peft_config
    from loractl.artifacts.peft import updates
    from loractl.lora.ranks import ModuleRank, RankSpec
    from loractl.models import load

    ranks = {name: ModuleRank(one.rank, one.rank, 1.0) for name, (_, one) in found.updates.items()}
    top = max(size.rank for size in ranks.values())
    config = peft_config.content(
        ranks,
        [name for name, _ in pair.base.skeleton.named_modules()],
        spec=RankSpec(rank=top, alpha=top),
        kinds=pair.kinds,
        dropout=0.0,
        base=pair.base.source.name,
    )
    prints = [load.fingerprint(side.source) for side in (pair.base, pair.tuned)]
    about = {
        "loractl": __version__,
        "base": {"name_or_path": pair.base.source.name, "fingerprint": prints[0]},
        "made": {
            "by": "adapters extract",
            "from": {"name_or_path": pair.tuned.source.name, "fingerprint": prints[1]},
            "kept_energy": found.kept_energy / found.changed_energy,
            "not_expressed": sorted(found.rest),
            **size_of(asked),
        },
    }
    updates.write_updates(
        directory,
        found.updates,
        config=config,
        about=about,
        chat_template=_template(pair.tuned.source.directory),
    )


def _template(directory: Path) -> str | None:
    """The chat template that lies with a model, by either of its two places."""
    from loractl.artifacts import files

    path, config = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    if path.is_file():
        return files.read_text(path)
    found = files.read_json(config).get("chat_template") if config.is_file() else None
    return found if isinstance(found, str) else None
