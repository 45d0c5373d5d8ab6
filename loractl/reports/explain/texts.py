"""The page's texts: one file for each language, with the same keys. Markup in them is ours; values
that are put into them are escaped."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

LANGUAGES = ("en", "zh")


@cache
def texts(lang: str) -> dict[str, Any]:
    """All texts of a language as markup, except those under `js`, which scripts show as text."""
    path = Path(__file__).with_name(f"{lang}.toml")
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    return {key: part if key == "js" else _as_markup(part) for key, part in found.items()}


def _as_markup(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _as_markup(one) for key, one in part.items()}
    if isinstance(part, list):
        return [_as_markup(one) for one in part]
    return Markup(part)
