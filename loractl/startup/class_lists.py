"""transformers' list of its classes, cached between starts.

On import, transformers reads 1,640 source files to find the names of their classes, and reads them
again for `transformers.models`: each time 0.5 s of the 6 s that a start takes. It reads them once
more in `transformers.processing_utils`, which every model imports. It caches its own result there,
but not one from us, so that import has to be inside `keep_list` too.

So `define_import_structure` of `transformers.utils.import_utils` is patched, and restored after the
imports. The list is read from a cache file instead, stored with the names, times and sizes of all
those sources. If they have changed, or another version of transformers works differently,
transformers reads its sources as usual.
"""

import contextlib
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from loractl.leftovers import making_in_cache
from loractl.paths import cache_home
from loractl.startup import importers

MODULE = "transformers.utils.import_utils"
MAKER = "define_import_structure"  # of that module: (path, prefix) -> Listed

Listed = Mapping[frozenset[str], Mapping[str, set[str]]]
"""Packages that classes need -> module -> its classes."""


@contextlib.contextmanager
def keep_list() -> Iterator[None]:
    """Give transformers the cached list while it is imported, then undo the patch.

    Nested calls do nothing.
    """
    if importers.is_expected(MODULE):
        yield
        return
    taken: list[tuple[ModuleType, Any]] = []

    def take_over(module: ModuleType) -> None:
        if (own := getattr(module, MAKER, None)) is not None:
            taken.append((module, own))
            setattr(module, MAKER, from_cache(own, models_beside(module)))

    def run_and_take_over(module: ModuleType, run: importers.Run) -> None:
        run(module)
        take_over(module)  # `transformers` runs it and asks for the list right away

    if MODULE in sys.modules:
        take_over(sys.modules[MODULE])
    try:
        with importers.run_instead(MODULE, run_and_take_over):
            yield
    finally:
        for module, own in taken:
            setattr(module, MAKER, own)


def models_beside(utils: Any) -> Path:
    """The directory that holds all models."""
    return Path(utils.__file__).resolve().parent.parent / "models"


def from_cache(own: Callable[..., Any], models: Path) -> Callable[..., Any]:
    """`own`, but with the two lists of all models taken from the cache."""
    everything = functools.cache(lambda: _all_of(models, own))
    known: dict[Path, tuple[dict[str, Any], str]] = {  # path -> options, prefix of the names
        models: ({"prefix": "models"}, "models."),
        models / "__init__.py": ({}, ""),
    }

    def listed(path: Any, *rest: Any, **options: Any) -> Any:
        wanted, prefix = known.get(Path(path).resolve(), (None, ""))
        if rest or options != wanted:
            return own(path, *rest, **options)
        try:
            return _with_prefix(everything(), prefix)
        except (AttributeError, TypeError, ValueError, OSError):
            return own(path, *rest, **options)

    return listed


def _with_prefix(everything: Listed, prefix: str) -> Listed:
    return {
        needs: {prefix + name: set(classes) for name, classes in modules.items()}
        for needs, modules in everything.items()
    }


def _all_of(models: Path, own: Callable[..., Any]) -> Listed:
    of_this = hashlib.sha256(str(models).encode()).hexdigest()[:16]
    place, state = cache_home() / "transformers" / f"{of_this}.json", sources_state(models)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        there = json.loads(place.read_text("utf-8"))
        if there["state"] == state:
            return {
                frozenset(needs): {name: set(classes) for name, classes in modules.items()}
                for needs, modules in there["listed"]
            }
    made: Listed = own(str(models))
    listed = [
        [sorted(needs), {name: sorted(classes) for name, classes in modules.items()}]
        for needs, modules in made.items()
    ]
    with contextlib.suppress(OSError):  # it is then computed again next time
        _write_list(place, json.dumps({"state": state, "listed": listed}))
    return made


def sources_state(models: Path) -> str:
    """A digest that changes with any source file of the models or of the code that lists them."""
    digest = hashlib.sha256()
    each = (path for path in models.iterdir() if path.is_dir())
    for directory in (models.parent / "utils", models, *sorted(each)):
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if entry.name.endswith(".py"):
                of_it = entry.stat()
                digest.update(f"{entry.path} {of_it.st_mtime_ns} {of_it.st_size}\n".encode())
    return digest.hexdigest()


def _write_list(place: Path, text: str) -> None:
    """Write the list with one rename, so that no other process reads part of it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with making_in_cache(place.parent) as working:
        made = working / place.name
        made.write_text(text, encoding="utf-8")
        os.replace(made, place)
