"""torch and transformers, imported in one place and faster than by a plain import.

During the import this patches `inspect.getmodule` of the standard library and switches garbage
collection off; `class_lists` patches `transformers.utils.import_utils`, and `dynamo` stands in for
`torch._dynamo`. All but the last are undone when the import is finished.

`$LORACTL_PLAIN_START` set to 1 disables all of it, in case another version of a library does not
work with it: the same modules are then imported as usual. `import_` takes 4.2 s with all of it and
7.0 s without (medians of three, two busy cores of an Intel Xeon, files in memory).
"""

import gc
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from loractl.startup import class_lists, dynamo


@contextmanager
def quickly() -> Iterator[None]:
    """A context in which importing torch and transformers is faster.

    The list of transformers' classes comes from the cache, and two things are skipped that take
    1.5 s and 0.2 s of the 7 s of all imports. Cyclic garbage collection: imported modules stay
    anyway. And the search through all modules for the one that a source file belongs to: torch
    records the line that defines an operator, which inspect finds without that search too.
    With a plain start, nothing is changed.
    """
    if is_plain():
        yield
        return
    was_on, modules = gc.isenabled(), inspect.getmodule

    def without_search(object: object, _filename: str | None = None) -> ModuleType | None:
        return modules(object) if _filename is None else None

    gc.disable()
    inspect.getmodule = without_search
    try:
        with class_lists.keep_list(), dynamo.let_wait():
            yield
    finally:
        inspect.getmodule = modules
        if was_on:
            gc.enable()


def is_plain() -> bool:
    """Whether `$LORACTL_PLAIN_START` asks for the plain way."""
    return os.environ.get("LORACTL_PLAIN_START") == "1"


def import_() -> None:
    """Import what every command that loads a base needs. A second call costs nothing."""
    with quickly():
        import_transformers()
        import transformers.modeling_utils
        import transformers.processing_utils  # noqa: F401


def import_transformers() -> None:
    """Import transformers without the modules that load a model, which take another 1.5 s, so that
    other work can start before that."""
    with quickly():
        import transformers
        import transformers.models  # noqa: F401
