"""torch and transformers, imported whole and sooner than by the first who needs a part of them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from loractl.models import listing


@contextmanager
def quickly() -> Iterator[None]:
    """Import in here what brings torch and transformers.

    The list of transformers' classes is taken from the cache, and the search for cyclic garbage is
    left until later: what is imported stays anyway, and looking through it again and again takes
    1.5 of the 7 s that all imports take.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        with listing.kept():
            yield
    finally:
        if was_on:
            gc.enable()


def import_() -> None:
    """Import what every command needs that loads a base. Costs nothing the second time."""
    with quickly():
        import_transformers()
        import transformers.modeling_utils
        import transformers.processing_utils  # noqa: F401


def import_transformers() -> None:
    """Import transformers without what loads a model, which takes 1.5 s more: something else can be
    begun before that."""
    with quickly():
        import transformers
        import transformers.models  # noqa: F401
