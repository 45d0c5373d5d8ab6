"""Runs of `loractl train` in tests of several rooms: to start one, and to read what it wrote."""

import hashlib
import json
from pathlib import Path
from typing import Any

from loractl.cli.main import main

TIMES = ("tokens_per_s", "peak_memory_bytes")


def train(config: Path, *options: str) -> int:
    return main(["train", str(config), *options])


def tree(directory: Path) -> dict[str, str]:
    """The hash of every file below a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(run: Path) -> list[dict[str, Any]]:
    """The rows without what a clock or a meter said."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows_of(run)]
