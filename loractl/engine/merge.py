"""The heavy half of `loractl merge`: base + adapter written as one model, proven, and recorded with
what was chosen where training quantized the base."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from loractl import __version__
from loractl.artifacts import files
from loractl.artifacts.model import merge as merged
from loractl.artifacts.model import plan
from loractl.artifacts.model.proof import prove
from loractl.artifacts.model.stops import add_ends
from loractl.artifacts.peft.adapter import ABOUT, WEIGHTS, Adapter
from loractl.artifacts.peft.vocabulary_size import fit_
from loractl.digests import file_sha256
from loractl.engine.base_difference import measure
from loractl.engine.merge_bases import Bases
from loractl.engine.speakers import ends_of, tokenizer_of
from loractl.errors import NumericError
from loractl.models import load
from loractl.models.torch_dtypes import DTYPES, dtype_word
from loractl.reports.merge import about_difference, difference_as_text


def write_merged(
    out: Path, bases: Bases, adapter: Adapter, *, dtype: str | None, verify: bool
) -> list[str]:
    """Write the merged model with a record of how it was made; return the lines to print.

    Raises NumericError if the proof fails, and leaves nothing behind.
    """
    source, target = bases.chosen, DTYPES[dtype] if dtype else None
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
        figures = None
        if verify:
            lines.extend(_proven(out, directory, source, adapter, written.dtype))
            figures = _compared(directory, bases, adapter)
        else:
            lines.append("not proven: --no-verify was given")
        files.write_json(directory / ABOUT, _about(bases, adapter, figures))
        if kind := bases.kind:
            if figures is not None:
                lines.extend(difference_as_text(figures, kind, is_original=bases.is_original))
            word = dtype_word(merged.own_dtype(load.locate(str(directory))))
            lines.append(
                f"note: the merged model is in {word}; to keep the base in {kind}, leave the"
                f" adapter apart: loractl chat {adapter.directory}"
            )

    files.publish(out, write, needs=_bytes_on_disk(source, target))
    return lines


def _proven(
    out: Path, directory: Path, source: load.Source, adapter: Adapter, dtype: torch.dtype | None
) -> list[str]:
    proof = prove(directory, source, adapter, dtype=dtype)
    if not proof.holds:
        raise NumericError(f"{out}: {proof}; nothing was kept")
    lines = [str(proof)]
    if proof.drowned:
        lines.append(
            f"note: rounding to {proof.dtype} changes logits about as much as the adapter does;"
            " --dtype float32 keeps the adapter's full effect"
        )
    return lines


def _compared(directory: Path, bases: Bases, adapter: Adapter) -> dict[str, Any] | None:
    """The figures between the two bases; None if only one is known."""
    if bases.original is None:
        return None
    found = measure(directory, bases, adapter)
    return about_difference(found.logits, found.tokens, found.losses, found.ratios)


def _about(bases: Bases, adapter: Adapter, figures: Mapping[str, Any] | None) -> dict[str, Any]:
    """loractl.json of a merged model. Its base and template are where a model trained whole has
    them, so that `eval` compares it with its base."""
    chosen = bases.trained.quantization
    about: dict[str, Any] = {
        "loractl": __version__,
        "base": {"name_or_path": bases.chosen.address},
        "merged": {
            "adapter": str(adapter.directory.absolute()),
            "adapter_sha256": file_sha256(adapter.directory / WEIGHTS),
            "into": bases.into,
            "quantization": chosen and {**chosen.about(), "dtype": chosen.dtype},
            "difference": figures,
        },
    }
    if (template := adapter.about.get("chat_template")) is not None:
        about["chat_template"] = template
    return about


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
