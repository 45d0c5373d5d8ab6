"""torch and transformers, imported whole and sooner than by the first who needs a part of them.

While they are imported, this patches `inspect.getmodule` of the standard library and switches the
search for garbage off; `class_lists` patches `transformers.utils.import_utils`, and `dynamo` stands
in for `torch._dynamo`. All but the last is as it was when the import is done.

`$LORACTL_PLAIN_START` set to 1 leaves all of it out, where another version of a library does not
bear it: the same modules are then imported as Python does. `import_` takes 4.2 s with all of it and
7.0 without (medians of three, two busy cores of an Intel Xeon, files in memory).
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
    """Import in here what brings torch and transformers.

    The list of transformers' classes is taken from the cache, and two things are left undone that
    take 1.5 and 0.2 of the 7 s of all imports. The search for cyclic garbage: what is imported
    stays anyway. And the search through all modules for the one that a source file belongs to:
    torch notes the line that defines an operator, which inspect reads as well without an answer.
    Where a plain start is asked for, all is done as ever.
    """
    if _is_plain():
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


def _is_plain() -> bool:
    return os.environ.get("LORACTL_PLAIN_START") == "1"


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
