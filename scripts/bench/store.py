"""results.json: what each benchmark found, one record a workload, with its machine and date."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTH = 100
Results = dict[str, dict[str, Any]]  # benchmark -> workload -> record


def read(path: Path) -> Results:
    """What was measured before; it stays in the file until it is measured again."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def keep(path: Path, benchmark: str, workload: str, record: Mapping[str, Any]) -> None:
    """Put one record into the file, in the place of the one it replaces."""
    results = read(path)
    results.setdefault(benchmark, {})[workload] = dict(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumped(results) + "\n", encoding="utf-8")


def dumped(value: Any, indent: int = 0, before: int = 0) -> str:
    """JSON whose objects and lists take one line where they fit, `before` characters in it."""
    line = json.dumps(value)
    if indent + before + len(line) <= WIDTH or not isinstance(value, dict | list):
        return line
    inner = "\n" + " " * (indent + 1)
    if isinstance(value, list):
        return f"[{inner}{f',{inner}'.join(dumped(one, indent + 1) for one in value)}{inner[:-1]}]"
    keys = {key: f"{json.dumps(key)}: " for key in value}
    pairs = (keys[key] + dumped(one, indent + 1, len(keys[key])) for key, one in value.items())
    return f"{{{inner}{f',{inner}'.join(pairs)}{inner[:-1]}}}"
