"""`loractl merge`: write base + adapter as one model, and verify that it is equivalent."""

from pathlib import Path

from loractl import console
from loractl.commands.arguments import DTYPES, require_apart, require_free, require_word
from loractl.engine.merge_bases import INTO, find_bases
from loractl.startup import libraries


def run(
    path: Path,
    out: Path,
    *,
    base: str | None = None,
    into: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    verify: bool = True,
) -> int:
    """Merge an adapter into its base. Raises NumericError, leaving nothing, if the proof fails.

    `into` says which base, if training quantized it; None: the quantized one.
    """
    if into is not None:
        require_word("--into", into, INTO)
    if dtype is not None:
        require_word("--dtype", dtype, DTYPES)
    require_free(out, overwrite=overwrite)

    from loractl.artifacts.peft import adapter as adapters
    from loractl.artifacts.run import proofs

    adapter = adapters.read(path)
    libraries.import_()  # after an unreadable adapter would have been reported
    from loractl.engine.merge import write_merged

    bases = find_bases(adapter, base, into)
    require_apart(out, bases.trained.directory, bases.chosen.directory, adapter.directory)
    lines = write_merged(out, bases, adapter, dtype=dtype, verify=verify)
    for line in lines:
        console.note(line)
    proofs.record(adapter.directory, adapters.WEIGHTS, "merge", out, lines)
    console.result(str(out))
    return 0
