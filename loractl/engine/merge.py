"""The heavy half of `loractl merge`: base + adapter written as one model, and proven."""

from pathlib import Path

import torch
from safetensors import SafetensorError

from loractl.artifacts import files
from loractl.artifacts.model import merge as merged
from loractl.artifacts.model import plan
from loractl.artifacts.model.proof import prove
from loractl.artifacts.model.stops import add_ends
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.vocabulary_size import fit_
from loractl.engine.speakers import ends_of, tokenizer_of
from loractl.errors import NumericError
from loractl.models import load
from loractl.models.torch_dtypes import DTYPES


def write_merged(
    out: Path, source: load.Source, adapter: Adapter, *, dtype: str | None, verify: bool
) -> list[str]:
    """Write the merged model; return the lines to print. Raises NumericError if the proof fails,
    and leaves nothing behind."""
    target = DTYPES[dtype] if dtype else None
    lines: list[str] = []
    if adapter.brings_tokenizer:
        skeleton = load.load_skeleton(source)
        fit_(skeleton, adapter)
        tokenizer_of(adapter, load.load_tokenizer(source), load.n_rows(skeleton))

    def write(directory: Path) -> None:
        written = merged.write(directory, source, adapter, dtype=target)
        if (directory / "tokenizer.json").is_file():
            tokenizer = load.load_tokenizer(load.Source(str(out), directory))
            own = [tokenizer.eos_token_id] if adapter.brings_tokenizer else []
            add_ends(directory, [*ends_of(adapter, tokenizer), *own])
        if written.untied:
            lines.append("the output head no longer shares the embedding's weight (untied)")
        if not verify:
            lines.append("not proven: --no-verify was given")
            return
        proof = prove(directory, source, adapter, dtype=written.dtype)
        if not proof.holds:
            raise NumericError(f"{out}: {proof}; nothing was kept")
        lines.append(str(proof))
        if proof.drowned:
            lines.append(
                f"note: rounding to {proof.dtype} changes logits about as much as the adapter does;"
                " --dtype float32 keeps the adapter's full effect"
            )

    files.publish(out, write, needs=_bytes_on_disk(source, target))
    return lines


def _bytes_on_disk(source: load.Source, dtype: torch.dtype | None) -> int | None:
    """Bytes that a merge needs on disk; None for a GGUF or a damaged base."""
    if source.gguf:
        return None
    try:
        widest = max((kind.itemsize for kind in merged.float_dtypes(source)), default=1)
        total = sum(path.stat().st_size for path in plan.shards(source))
    except SafetensorError:
        return None  # reported when it is read
    return total if dtype is None else total * dtype.itemsize // widest
