"""torch and transformers, imported whole and sooner than by the first who needs a part of them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from loractl.models import listing


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
    with uncollected(), listing.kept():
        import transformers
        import transformers.models  # noqa: F401
