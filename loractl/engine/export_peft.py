"""The heavy half of `loractl export --to peft`: one rank for all modules, proven in PEFT."""

from importlib.util import find_spec
from pathlib import Path

from loractl.artifacts import files
from loractl.artifacts.peft import portable
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import ranks_of
from loractl.artifacts.peft.vocabulary_size import fit_
from loractl.errors import NumericError
from loractl.models.load import Source, load_skeleton, n_rows
from loractl.models.torch_dtypes import FILE_DTYPES
from loractl.text import counted


def write_portable(
    out: Path, adapter: Adapter, source: Source, *, dtype: str | None, verify: bool
) -> list[str]:
    """Write the adapter in the form that PEFT and vLLM load; return the lines to print.

    Raises NumericError if the proof fails, and leaves nothing behind.
    """
    kind = FILE_DTYPES[dtype or "f32"]
    skeleton = load_skeleton(source)
    grows = fit_(skeleton, adapter) is not None
    rows = n_rows(skeleton)
    ranks_of(adapter, skeleton)
    lines: list[str] = []

    def write(directory: Path) -> None:
        rank = portable.write(
            directory, adapter, skeleton, dtype=kind, base=adapter.base or source.address
        )
        lines.append(f"one rank for all modules: {rank} (vLLM: --max-lora-rank)")
        if adapter.rows:
            lines.append(_say_rows(adapter, rows if grows else None))
        if not verify:
            lines.append("not proven: --no-verify was given")
        elif find_spec("peft") is None:
            lines.append("not proven: peft is not installed; pip install peft")
        else:
            said, holds = portable.prove(directory, source, adapter, kind)
            if not holds:
                raise NumericError(f"{out}: {said}; nothing was kept")
            lines.append(said)

    files.publish(out, write)
    return lines


def _say_rows(adapter: Adapter, rows: int | None) -> str:
    """Who reads the rows of new tokens, and what the base has to do first to have `rows` rows."""
    count = counted(len(adapter.own_tokens), "new token")
    grown = f" after base.resize_token_embeddings({rows})" if rows else ""
    return (
        f"note: rows of {count} are read by PEFT{grown}, and not by vLLM, which needs the model"
        " that loractl merge writes"
    )
