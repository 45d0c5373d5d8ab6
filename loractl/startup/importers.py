"""Replace the execution of one module on import, whoever imports it.

While `run_instead` is active, our finder is first in `sys.meta_path`, and the loader that it
returns executes the module our way once. No module is changed here; the purposes are explained in
the two users, `class_lists` and `dynamo`.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

Run = Callable[[ModuleType], None]


@contextmanager
def run_instead(name: str, act: Callable[[ModuleType, Run], None]) -> Iterator[None]:
    """If `name` is imported inside for the first time, call `act` with the empty module and the
    function that would execute it."""
    finder = Finder(name, act)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def is_expected(name: str) -> bool:
    """Whether a `run_instead` for that name is active."""
    return any(isinstance(finder, Finder) and finder.name == name for finder in sys.meta_path)


class Finder(MetaPathFinder):
    """Finds one module as Python does, but replaces its execution."""

    def __init__(self, name: str, act: Callable[[ModuleType, Run], None]) -> None:
        self.name, self.act = name, act

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: object = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == self.name else None
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        run = loader.exec_module

        def once(module: ModuleType) -> None:
            del loader.exec_module
            self.act(module, run)

        loader.exec_module = once
        return spec
