"""What identifies a base: a hash of its files, and the memory of it, so that commands which compare
an adapter's base with the one it was trained on need not read all weights again each time.

A fingerprint is remembered by path, size, time of change and inode of every file. It is computed
again where anything that is written must be right: `train`, `merge` and `export`.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path

from loractl import leftovers
from loractl.digests import file_sha256
from loractl.models.load import Source
from loractl.paths import cache_home, make_private_directory

UNUSED_DAYS = 90
SETTLED_SECONDS = 2.0
"""A file changed since then could change again within one tick of its file system's clock, which
is two seconds on FAT."""
_ENTRY = re.compile(r"[0-9a-f]{32}\.json")

Stat = tuple[str, int, int, int]  # path, size, mtime_ns, inode


def fingerprint(source: Source) -> str:
    """SHA-256 of the config and weight files: identifies a base wherever it is stored."""
    digest = hashlib.sha256()
    before, began = _stats(source), time.time()
    for path in _files(source):
        digest.update(f"{file_sha256(path)}\n".encode())
    found = digest.hexdigest()
    if before == _stats(source):
        _remember(source, before, found, began)
    return found


def remembered_fingerprint(source: Source) -> str:
    """The same, without reading files that are as they were when it was last computed."""
    place, stats = _place(source), _stats(source)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        make_private_directory(place.parent)  # raises if others could have written there
        entry = json.loads(place.read_text("utf-8"))
        if entry["files"] == [list(one) for one in stats] and isinstance(entry["sha256"], str):
            os.utime(place)
            return str(entry["sha256"])
    return fingerprint(source)


def _files(source: Source) -> list[Path]:
    config = source.directory / "config.json"
    return [
        *([config] if config.is_file() and not source.gguf else []),
        *source.weight_files(),
    ]


def _stats(source: Source) -> list[Stat]:
    """What changes when a file does; links are followed, as in the hub's cache."""
    found = []
    for path in _files(source):
        one = path.stat()
        found.append((os.path.realpath(path), one.st_size, one.st_mtime_ns, one.st_ino))
    return found


def _place(source: Source) -> Path:
    name = os.path.join(os.path.realpath(source.directory), source.gguf or "")
    return cache_home() / "bases" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def _remember(source: Source, stats: list[Stat], sha256: str, began: float) -> None:
    """Remember a fingerprint, if its files are old enough and the cache can be written."""
    if any(mtime / 1e9 > began - SETTLED_SECONDS for _, _, mtime, _ in stats):
        return
    place = _place(source)
    with contextlib.suppress(OSError):
        make_private_directory(place.parent)
        _forget_unused(place.parent)
        with leftovers.making_in_cache(place.parent) as working:
            (working / place.name).write_text(json.dumps({"files": stats, "sha256": sha256}))
            os.replace(working / place.name, place)


def _forget_unused(directory: Path) -> None:
    """Remove entries that nobody has used for long; other files stay, whoever put them there."""
    oldest = time.time() - UNUSED_DAYS * 86400
    for entry in directory.iterdir():
        if _ENTRY.fullmatch(entry.name) and entry.stat().st_mtime < oldest:
            entry.unlink(missing_ok=True)
