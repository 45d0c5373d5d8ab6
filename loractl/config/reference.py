"""The reference of all settings as a Markdown table, and its place in a document.

Everything comes from `settings`: names, types, defaults, descriptions; and what `NOT_YET` refuses.
"""

import json
from typing import Any

from loractl.config.describe import describe
from loractl.config.not_yet import ABSENT, NOT_YET
from loractl.config.settings import RunConfig, Section
from loractl.config.validation import keys


def reference_table() -> str:
    """Every setting as a row of a Markdown table: key, accepted values, default, meaning."""
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key in keys():
        info = _find_field(key)
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            continue
        default = "required" if info.is_required() else f"`{json.dumps(info.get_default())}`"
        takes = describe(info.annotation, info.metadata)
        cells = [f"`{key}`", takes, default, f"{info.description}{_word_absence(key)}"]
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        lines.append(f"| {row} |")
    return "\n".join(lines)


def with_reference(text: str) -> str:
    """Replace the text between the markers of a Markdown document with the reference table."""
    begin, end = "<!-- config-reference -->", "<!-- /config-reference -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"no {begin} ... {end}")
    return f"{before}{begin}\n{reference_table()}\n{end}{after}"


def _find_field(key: str) -> Any:
    info: Any = None
    section: Any = RunConfig
    for name in key.split("."):
        info = section.model_fields[name]
        section = info.annotation
    return info


def _word_absence(key: str) -> str:
    """' (... not available in this version)' for values that are not implemented."""
    for refused_key, refused in NOT_YET.items():
        if key == refused_key or key.startswith(f"{refused_key}."):
            what = f"{', '.join(map(str, refused))}: " if refused is not None else ""
            return f" *({what}{ABSENT})*"
    return ""
