"""What a text that names a source of rows can mean: a file by its ending, or a data set of the hub;
and where what can be made again is kept.

Read before anything is loaded, so nothing is looked up here but the names of paths.
"""

import os
import re
from pathlib import Path

DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Files that rows are read from; all but .parquet may be followed by .gz."""

OTHER_ENDINGS = (".gz", ".txt", ".zip", ".arrow", ".yaml", ".py")
"""Endings of names that are no ids of the hub, though no rows are read from such files."""

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?::[\w.-]+)?", re.ASCII)
"""owner/name, or owner/name:configuration."""


def is_hub_data(name: str) -> bool:
    """Whether a source is the id of a data set on the hub, and no path here.

    What begins with a directory that is here is a path: a file that is missing in it is no id.
    """
    if _HUB.fullmatch(name) is None or ".." in name or "--" in name:
        return False
    if name.lower().endswith((*DATA_ENDINGS, *OTHER_ENDINGS)):
        return False
    return not Path(name).exists() and not Path(name).parent.is_dir()


def cache_home() -> Path:
    """$LORACTL_CACHE, or loractl in the user's cache directory."""
    own = os.environ.get("LORACTL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loractl"
