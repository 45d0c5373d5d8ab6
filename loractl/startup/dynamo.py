"""torch._dynamo, the front end of torch.compile, imported only when something needs it.

transformers and torch's optimizers import it, which takes 0.7 s, for functions that do nothing
unless something is compiled: `disable`, `graph_break` and marks on functions. Here the entry
`torch._dynamo` in `sys.modules` is a module with only those names. It becomes the real one when any
other name or submodule is requested; functions disabled or marked by then are so in the real one
too. Nothing else in torch is patched.
"""

import functools
import importlib
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FunctionType, ModuleType
from typing import Any

from loractl.startup import importers

NAME = "torch._dynamo"
FREE = f"{NAME}._trace_wrapped_higher_order_op"
"""The one submodule that transformers imports; it does not need the others."""
LATER = "_loractl_later"


def let_wait() -> AbstractContextManager[None]:
    """Delay torch._dynamo, if it is imported inside for the first time."""
    return importers.run_instead(NAME, _stand_in)


def _stand_in(module: ModuleType, run: importers.Run) -> None:
    try:
        importlib.import_module(FREE)
    except ImportError:  # another version of torch
        run(module)
    else:
        del module.__path__  # importing any other submodule asks for it
        module.__class__ = _Waiting


class _Waiting(ModuleType):
    """The module before it is run. It has none of the real names, so each lookup comes here."""

    def __getattr__(self, name: str) -> Any:
        if name == "disable":
            return functools.partial(_disable_later, self)
        if name == "graph_break":
            return _graph_break
        if name in ("assume_constant_result", "allow_in_graph"):
            return functools.partial(_mark_later, self, name)
        with _one_at_a_time:  # another thread gets it only when complete
            if self in _running:  # it is looking itself up while being run
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
            if type(self) is _Waiting:
                _run_real_(self)
        return getattr(self, name)


_one_at_a_time = threading.RLock()
_running: list[ModuleType] = []


def _run_real_(module: ModuleType) -> None:
    """Turn the stand-in into the real module."""
    spec = module.__spec__
    assert spec is not None and spec.loader is not None, "a spec with a loader found it"
    module.__path__ = spec.submodule_search_locations or []
    _running.append(module)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module.__name__]  # as for any failed import
        raise
    finally:
        _running.remove(module)
    object.__setattr__(module, "__class__", ModuleType)
    for do in vars(module).pop(LATER, []):
        do()


def _kept_for_later(module: ModuleType) -> list[Callable[[], object]]:
    """Calls to make once the real module is there."""
    found: list[Callable[[], object]] = vars(module).setdefault(LATER, [])
    return found


def _graph_break(msg: str = "") -> None:
    """Do nothing: nothing is being compiled."""


def _mark_later(module: ModuleType, how: str, fn: Any) -> Any:
    if type(module) is not _Waiting:
        return getattr(module, how)(fn)
    _kept_for_later(module).append(lambda: getattr(module, how)(fn))
    return fn


def _disable_later(
    module: ModuleType, fn: Any = None, recursive: bool = True, **options: Any
) -> Callable[..., Any]:
    """A function that calls `fn` until the real module is there, then its disabled version."""
    if fn is None:
        return functools.partial(_disable_later, module, recursive=recursive, **options)
    if not isinstance(fn, FunctionType):  # a module or class is modified, not wrapped
        _ = module.__path__  # triggers the real import
    if type(module) is not _Waiting:
        return module.disable(fn, recursive, **options)  # type: ignore[no-any-return]
    disabled: Any = fn

    @functools.wraps(fn)
    def called(*args: Any, **keywords: Any) -> Any:
        return disabled(*args, **keywords)

    def disable() -> None:
        nonlocal disabled
        disabled = module.disable(fn, recursive, **options)
        vars(called).update(vars(disabled))  # these attributes tell the compiler

    _kept_for_later(module).append(disable)
    return called
