"""`loractl export`: write files for PEFT and vLLM, llama.cpp or Ollama, and verify them there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loractl import console
from loractl.commands.arguments import require_apart, require_free, require_word
from loractl.dtypes import SHORT
from loractl.startup import libraries

if TYPE_CHECKING:
    from loractl.artifacts.peft.adapter import Adapter
    from loractl.engine.export_gguf import Exporting
    from loractl.models.load import Source


@dataclass(frozen=True)
class ExportRequest:
    """What is exported, where to, and how."""

    adapter: "Adapter"
    source: "Source"
    out: Path
    dtype: str | None
    verify: bool


@dataclass(frozen=True)
class Format:
    """One export format."""

    write: Callable[[ExportRequest], list[str]]  # -> lines to print
    dtypes: tuple[str, ...]
    is_file: bool


def run(
    path: Path,
    to: str,
    out: Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    verify: bool = True,
) -> int:
    """Export an adapter. Raises NumericError, leaving nothing behind, if verification fails."""
    require_word("--to", to, FORMATS)
    form = FORMATS[to]
    if dtype is not None:
        why = "; the rows of a LoRA's B are shorter than a q8_0 block" if dtype == "q8_0" else ""
        require_word("--dtype", dtype, form.dtypes, more=f" for --to {to}{why}")
    require_free(out, overwrite=overwrite, is_file=form.is_file)

    from loractl.artifacts.peft import adapter as adapters
    from loractl.artifacts.run import proofs

    adapter = adapters.read(path)
    libraries.import_()  # after an unreadable adapter would have been reported
    from loractl.engine.base import find_trained_base

    source = find_trained_base(adapter, base)
    require_apart(
        out, source.weight_files()[0] if source.gguf else source.directory, adapter.directory
    )
    lines = form.write(ExportRequest(adapter, source, out, dtype, verify))
    for line in lines:
        console.note(line)
    proofs.record(adapter.directory, adapters.WEIGHTS, f"export to {to}", out, lines)
    console.result(str(out))
    return 0


def _write_peft(request: ExportRequest) -> list[str]:
    from loractl.engine.export_peft import write_portable

    return write_portable(
        request.out, request.adapter, request.source, dtype=request.dtype, verify=request.verify
    )


def _write_gguf(request: ExportRequest) -> list[str]:
    from loractl.artifacts import files

    exporting = _open_export(request)
    files.publish_file(request.out, exporting.write_adapter)
    return exporting.lines


def _write_merged_gguf(request: ExportRequest) -> list[str]:
    from loractl.artifacts import files

    exporting = _open_export(request)
    files.publish_file(request.out, exporting.write_merged)
    return exporting.lines


def _write_ollama(request: ExportRequest) -> list[str]:
    from loractl.artifacts import files
    from loractl.artifacts.gguf import ollama

    exporting = _open_export(request)
    found = exporting.ollama_family()

    def write(directory: Path) -> None:
        exporting.write_merged(directory / ollama.MODEL)
        ollama.write_modelfile(directory, found)

    files.publish(request.out, write)
    said = f"template: {found.family.name}, matches the chat template on 4 conversations"
    return [*exporting.lines, said, f"load it with: ollama create NAME -f {request.out}/Modelfile"]


def _open_export(request: ExportRequest) -> "Exporting":
    from loractl.engine.export_gguf import Exporting

    return Exporting(
        request.adapter, request.source, request.out, dtype=request.dtype, verify=request.verify
    )


MODEL_DTYPES = (*SHORT.values(), "q8_0", "q4_k_m")
FORMATS = {
    "peft": Format(_write_peft, tuple(SHORT.values()), is_file=False),
    "gguf": Format(_write_gguf, tuple(SHORT.values()), is_file=True),
    "merged-gguf": Format(_write_merged_gguf, MODEL_DTYPES, is_file=True),
    "ollama": Format(_write_ollama, MODEL_DTYPES, is_file=False),
}
