"""metrics.jsonl: a line a step and a line an evaluation, appended, and cut back on resume."""

import json
from pathlib import Path
from typing import Any

from loractl.artifacts import files


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row, of finite numbers: NaN and Infinity are no JSON."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole rows; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_until(path: Path, step: int) -> None:
    """Drop the rows of steps after `step`: they will be trained, and written, again."""
    kept = [row for row in read(path) if row["step"] <= step]
    files.replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))
