"""torch and transformers, imported whole and sooner than by the first who needs a part of them."""

import gc
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Listed = Mapping[frozenset[str], Mapping[str, set[str]]]
"""What a class needs to be there -> module -> its classes."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave the search for cyclic garbage until later: what is imported stays anyway, and looking
    through it again and again takes 1.5 of the 7 s that all imports take."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def import_() -> None:
    """Import what every command needs that loads a base. Costs nothing the second time."""
    with uncollected():
        import_transformers()
        import transformers.modeling_utils  # noqa: F401


def import_transformers() -> None:
    """Import transformers without what loads a model, which takes 1.5 s more: something else can be
    begun before that."""
    with uncollected():
        import transformers

        with _listed_once(transformers):
            import transformers.models


@contextmanager
def _listed_once(transformers: Any) -> Iterator[None]:
    """Give `transformers.models` the list of its classes that `transformers` has just made.

    Each makes it by reading 1,640 source files, half a second long: what is kept between them are
    128 folders of 549. Where a version of transformers does it otherwise, it reads them again.
    """
    utils: Any = importlib.import_module("transformers.utils.import_utils")
    own = getattr(utils, "define_import_structure", None)
    if own is None:
        yield
        return
    place = Path(transformers.__file__).parent / "models"

    def listed(path: Any, *rest: Any, **options: Any) -> Any:
        if rest or options or Path(path) != place / "__init__.py":
            return own(path, *rest, **options)
        try:
            return _within("models.", own(place, prefix="models"))
        except (AttributeError, TypeError):
            return own(path)

    utils.define_import_structure = listed
    try:
        yield
    finally:
        utils.define_import_structure = own


def _within(prefix: str, everything: Listed) -> dict[frozenset[str], dict[str, set[str]]]:
    """The modules under a prefix, named from there."""
    found = {
        needs: {
            name.removeprefix(prefix): classes
            for name, classes in modules.items()
            if name.startswith(prefix)
        }
        for needs, modules in everything.items()
    }
    return {needs: modules for needs, modules in found.items() if modules}
