"""`loractl export`: write what PEFT and vLLM, llama.cpp or Ollama load, and prove it there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loractl import console
from loractl.commands.arguments import require_apart
from loractl.dtypes import SHORT
from loractl.errors import ConfigError, ModelError, NumericError
from loractl.startup import libraries

if TYPE_CHECKING:
    from loractl.artifacts.peft.adapter import Adapter
    from loractl.engine.export_gguf import Exporting
    from loractl.models.load import Source


@dataclass(frozen=True)
class Request:
    """What is exported, where to, and how."""

    adapter: "Adapter"
    source: "Source"
    out: Path
    dtype: str | None
    verify: bool


@dataclass(frozen=True)
class Format:
    """One thing that can be written."""

    write: Callable[[Request], list[str]]  # -> what to tell
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
    """Export an adapter. Raises NumericError when the proof fails; nothing is left then."""
    if to not in FORMATS:
        raise ConfigError(f"--to: {to!r}, expected one of {', '.join(FORMATS)}")
    form = FORMATS[to]
    if dtype is not None and dtype not in form.dtypes:
        why = "; the rows of a LoRA's B are shorter than its blocks" if dtype == "q8_0" else ""
        raise ConfigError(
            f"--dtype: {dtype!r}, expected one of {', '.join(form.dtypes)} for --to {to}{why}"
        )
    _check_out(out, form, overwrite)

    from loractl.artifacts.peft import adapter as adapters

    adapter = adapters.read(path)
    libraries.import_()  # an adapter that cannot be read is told before
    from loractl.engine.base import find_trained_base

    source = find_trained_base(adapter, base)
    if source.gguf:
        raise ModelError(
            f"{source.name}: a .gguf file is no base to export from; name the safetensors directory"
            " it was made from with --base"
        )
    require_apart(out, source.directory, adapter.directory)
    for line in form.write(Request(adapter, source, out, dtype, verify)):
        console.note(line)
    console.result(str(out))
    return 0


def _check_out(out: Path, form: Format, overwrite: bool) -> None:
    if out.exists() and form.is_file != out.is_file():
        found, wanted = ("a directory", "a file") if form.is_file else ("a file", "a directory")
        raise ConfigError(f"--out: {out} is {found}, expected {wanted} that is not there yet")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out: {out} exists; choose another path, or add --overwrite")


def _peft(request: Request) -> list[str]:
    from importlib.util import find_spec

    from loractl.artifacts import files
    from loractl.artifacts.peft import portable
    from loractl.artifacts.peft.attach import ranks_of
    from loractl.models.load import load_skeleton
    from loractl.models.torch_dtypes import FILE_DTYPES

    adapter, source = request.adapter, request.source
    dtype = FILE_DTYPES[request.dtype or "f32"]
    skeleton = load_skeleton(source)
    ranks_of(adapter, skeleton)
    lines: list[str] = []

    def write(directory: Path) -> None:
        rank = portable.write(
            directory, adapter, skeleton, dtype=dtype, base=adapter.base or source.name
        )
        lines.append(f"one rank for all modules: {rank} (vLLM: --max-lora-rank)")
        if not request.verify:
            lines.append("not proven: --no-verify was given")
        elif find_spec("peft") is None:
            lines.append("not proven: peft is not installed")
        else:
            said, holds = portable.prove(directory, source, adapter, dtype)
            if not holds:
                raise NumericError(f"{request.out}: {said}; nothing was kept")
            lines.append(said)

    files.publish(request.out, write)
    return lines


def _gguf(request: Request) -> list[str]:
    from loractl.artifacts import files

    exporting = _exporting(request)
    files.publish_file(request.out, exporting.write_adapter)
    return exporting.lines


def _merged_gguf(request: Request) -> list[str]:
    from loractl.artifacts import files

    exporting = _exporting(request)
    files.publish_file(request.out, exporting.write_merged)
    return exporting.lines


def _ollama(request: Request) -> list[str]:
    from loractl.artifacts import files
    from loractl.artifacts.gguf import ollama

    exporting = _exporting(request)
    found = exporting.ollama_family()

    def write(directory: Path) -> None:
        exporting.write_merged(directory / ollama.MODEL)
        ollama.write_modelfile(directory, found)

    files.publish(request.out, write)
    said = f"template: {found.family.name}, the same text as the chat template on 4 conversations"
    return [*exporting.lines, said, f"load it with: ollama create NAME -f {request.out}/Modelfile"]


def _exporting(request: Request) -> "Exporting":
    from loractl.engine.export_gguf import Exporting

    return Exporting(
        request.adapter, request.source, request.out, dtype=request.dtype, verify=request.verify
    )


FORMATS = {
    "peft": Format(_peft, tuple(SHORT.values()), is_file=False),
    "gguf": Format(_gguf, tuple(SHORT.values()), is_file=True),
    "merged-gguf": Format(_merged_gguf, (*SHORT.values(), "q8_0"), is_file=True),
    "ollama": Format(_ollama, (*SHORT.values(), "q8_0"), is_file=False),
}
