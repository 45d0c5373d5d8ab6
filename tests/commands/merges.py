"""Merges from the command line, and what is changed or read of the files around them."""

import json
from pathlib import Path
from typing import Any

from loractl.artifacts.peft.adapter import ABOUT
from loractl.cli.main import main
from loractl.quant.kinds import Quantization

NF4 = Quantization("nf4", "float32")


def merge(adapter: Path, out: Path, *flags: str) -> int:
    return main(["merge", str(adapter), "--out", str(out), *flags])


def record(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / ABOUT).read_text())
    return found


def amend(directory: Path, name: str, **changes: object) -> None:
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
