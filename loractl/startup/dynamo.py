"""torch._dynamo, torch.compile's reader of Python code, run when something needs it.

transformers and torch's optimizers import it, 0.7 s of a start, for names that do nothing as long
as nothing is compiled: `disable` a function for the compiler, mark one, `graph_break`. Here the
entry `torch._dynamo` of `sys.modules` is a module with those names alone, and becomes the real one
as soon as it is asked for anything else, a module inside it included; what was disabled or marked
by then is so. Nothing else of torch is patched.
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
"""The one module inside that transformers imports; it needs nothing of the rest."""
LATER = "_loractl_later"


def let_wait() -> AbstractContextManager[None]:
    """Let torch._dynamo wait, where it is imported in here for the first time."""
    return importers.run_instead(NAME, _stand_in)


def _stand_in(module: ModuleType, run: importers.Run) -> None:
    try:
        importlib.import_module(FREE)
    except ImportError:  # another version of torch
        run(module)
    else:
        del module.__path__  # whoever imports another module inside asks for it
        module.__class__ = _Waiting


class _Waiting(ModuleType):
    """The module before it is run. It has no name of the real one, so that each comes here."""

    def __getattr__(self, name: str) -> Any:
        if name == "disable":
            return functools.partial(_disable_later, self)
        if name == "graph_break":
            return _graph_break
        if name in ("assume_constant_result", "allow_in_graph"):
            return functools.partial(_mark_later, self, name)
        with _one_at_a_time:  # another thread has it when it is whole
            if self in _running:  # it looks into itself
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
            if type(self) is _Waiting:
                _run_real_(self)
        return getattr(self, name)


_one_at_a_time = threading.RLock()
_running: list[ModuleType] = []


def _run_real_(module: ModuleType) -> None:
    """Make it the real one."""
    spec = module.__spec__
    assert spec is not None and spec.loader is not None, "it was found by one"
    module.__path__ = spec.submodule_search_locations or []
    _running.append(module)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module.__name__]  # as with any import that fails
        raise
    finally:
        _running.remove(module)
    object.__setattr__(module, "__class__", ModuleType)
    for do in vars(module).pop(LATER, []):
        do()


def _kept_for_later(module: ModuleType) -> list[Callable[[], object]]:
    """What is to be done when the real one is there."""
    found: list[Callable[[], object]] = vars(module).setdefault(LATER, [])
    return found


def _graph_break(msg: str = "") -> None:
    """Nothing is being compiled."""


def _mark_later(module: ModuleType, how: str, fn: Any) -> Any:
    if type(module) is not _Waiting:
        return getattr(module, how)(fn)
    _kept_for_later(module).append(lambda: getattr(module, how)(fn))
    return fn


def _disable_later(
    module: ModuleType, fn: Any = None, recursive: bool = True, **options: Any
) -> Callable[..., Any]:
    """A function that is `fn` itself until the real module is there, then what that makes of it."""
    if fn is None:
        return functools.partial(_disable_later, module, recursive=recursive, **options)
    if not isinstance(fn, FunctionType):  # a module or a class is changed, not wrapped
        _ = module.__path__  # brings the real one
    if type(module) is not _Waiting:
        return module.disable(fn, recursive, **options)  # type: ignore[no-any-return]
    disabled: Any = fn

    @functools.wraps(fn)
    def called(*args: Any, **keywords: Any) -> Any:
        return disabled(*args, **keywords)

    def disable() -> None:
        nonlocal disabled
        disabled = module.disable(fn, recursive, **options)
        vars(called).update(vars(disabled))  # by which the compiler knows it

    _kept_for_later(module).append(disable)
    return called
