"""metrics.jsonl: one line per step and per evaluation, appended, and cut back on resume."""

import json
from pathlib import Path
from typing import Any


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row of finite numbers: NaN and Infinity are not JSON. Raises StorageError."""
    from loractl.artifacts import files  # imports torch, which a reader does not need

    with files.told(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All complete rows; a last line cut short by a crash is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def keep_until(path: Path, step: int, *, evaluated: bool = True) -> None:
    """Drop the rows of steps after `step`, which will be trained and written again.

    With `evaluated` false, the evaluation of `step` itself is dropped too.
    """
    from loractl.artifacts import files

    kept = [
        row
        for row in read(path)
        if row["step"] < step or (row["step"] == step and (evaluated or "eval_loss" not in row))
    ]
    files.replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))
