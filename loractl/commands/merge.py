"""`loractl merge`: write base + adapter as one model, and prove that it is the same model."""

from pathlib import Path
from typing import TYPE_CHECKING

from loractl import console
from loractl.commands.arguments import require_apart, require_dtype
from loractl.dtypes import WIDTHS
from loractl.errors import ConfigError, NumericError
from loractl.startup import libraries

if TYPE_CHECKING:
    import torch

    from loractl.models import load


def run(
    path: Path,
    out: Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    verify: bool = True,
) -> int:
    """Merge an adapter into its base. Raises NumericError when the proof fails; nothing is left."""
    if dtype is not None:
        require_dtype(dtype, WIDTHS)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file, expected a directory that is not there yet")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out: {out} exists; choose another directory, or add --overwrite")

    import torch

    from loractl.artifacts.peft import adapter as adapters

    adapter = adapters.read(path)
    libraries.import_()  # an adapter that cannot be read is told before
    from loractl.artifacts import files
    from loractl.artifacts.model import merge as merged
    from loractl.artifacts.model.proof import prove
    from loractl.engine.base import find_trained_base
    from loractl.models.torch_dtypes import DTYPES

    source = find_trained_base(adapter, base)
    target: torch.dtype | None = DTYPES[dtype] if dtype else None
    require_apart(out, source.directory, adapter.directory)
    lines: list[str] = []

    def write(directory: Path) -> None:
        written = merged.write(directory, source, adapter, dtype=target)
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
                f"note: rounding to {proof.dtype} moves logits about as much as the adapter does;"
                " --dtype float32 keeps its effect whole"
            )

    files.publish(out, write, needs=_bytes_of(source, target))
    for line in lines:
        console.note(line)
    console.result(str(out))
    return 0


def _bytes_of(source: "load.Source", dtype: "torch.dtype | None") -> int | None:
    """Bytes that a merge takes on disk; None for a GGUF, and for a base that is damaged."""
    from safetensors import SafetensorError

    from loractl.artifacts.model import merge as merged

    if source.gguf:
        return None
    try:
        widest = max((kind.itemsize for kind in merged.float_dtypes(source)), default=1)
        total = sum(path.stat().st_size for path in merged.shards(source))
    except SafetensorError:
        return None  # told when it is read
    return total if dtype is None else total * dtype.itemsize // widest
