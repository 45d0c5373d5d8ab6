"""The recommendation of `loractl recommend`, as text."""

import textwrap
from collections.abc import Mapping
from typing import Any

from loractl import text
from loractl.reports.estimate import TITLES


def as_text(found: Mapping[str, Any]) -> str:
    """Each setting with its reason and source, what fits in memory, and suitable GPUs."""
    lines = [f"{found['task']} task, {found['model']} ({found['parameters']:,} parameters)"]
    if (data := found["data"]) is not None and data["tokens"] is not None:
        lines.append(f"{data['rows']:,} rows, {data['tokens']:,} tokens ({data['counted']})")
    lines.append("")
    width = max(map(len, found["choices"]))
    for key, one in found["choices"].items():
        value = one["value"]
        shown = ", ".join(map(str, value)) if isinstance(value, list) else _value_as_text(value)
        lines.append(f"{key:{width}}  {shown}")
        left = " " * (width + 4)
        for words in (one["reason"], f"[{one['source']}]"):
            lines += textwrap.wrap(words, 100, initial_indent=left, subsequent_indent=left)
    lines.append("")
    if "search" in found:
        rows = [
            [
                TITLES[fit["method"]], "with" if fit["checkpointing"] else "without",
                str(fit["batch"]) if fit["batch"] else "none", text.size(fit["gpu_bytes"]),
            ]
            for fit in found["search"]
        ]  # fmt: skip
        lines.append(f"what fits in {text.size(found['memory_bytes'])}:")
        lines += [text.table(["method", "checkpointing", "max rows", "memory"], rows), ""]
    rows = [
        [
            TITLES[one["method"]], "with" if one["checkpointing"] else "without",
            text.size(one["gpu_bytes"]), one["fits"][0] if one["fits"] else "no single GPU",
        ]
        for one in found["gpus"]
    ]  # fmt: skip
    lines.append("memory with one row per micro-batch:")
    lines.append(text.table(["method", "checkpointing", "memory", "smallest GPU"], rows))
    return "\n".join(lines)


def _value_as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
