"""proofs.jsonl in a run: what merges and exports of its adapter proved, one line each.

A proof is about certain weights, so each line has their SHA-256: after the run is extended, older
lines are about other weights.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loractl.digests import file_sha256

NAME = "proofs.jsonl"
UNPROVEN = "not proven"
"""Begins the line of a merge or an export that was not verified."""


def record(adapter: Path, weights: str, what: str, out: Path, said: Sequence[str]) -> None:
    """Add what was said of `what` (merge, export to gguf, ...) to the run that has this adapter.

    `weights` is the name of the file whose hash is kept. An adapter that is not part of a run, or a
    run that cannot be written, is left as it is: the result itself is somewhere else.
    """
    run = adapter.resolve().parent
    if adapter.resolve().name != "adapter" or not (run / "config.yaml").is_file():
        return
    row = {
        "what": what,
        "out": str(out.resolve()),
        "said": list(said),
        "is_proven": not any(line.startswith(UNPROVEN) for line in said),
        "weights_sha256": file_sha256(adapter / weights),
    }
    with contextlib.suppress(OSError), (run / NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(run: Path) -> list[dict[str, Any]]:
    """The lines that can be read; of those that say the same of the same output, the last."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with contextlib.suppress(OSError):
        for line in (run / NAME).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("said"), list):
                    found[str(row.get("what")), str(row.get("out"))] = row
    return list(found.values())
