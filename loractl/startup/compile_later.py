"""torch.compile that begins at the first call, for libraries that decorate with it on import.

bitsandbytes does so for kernels that neither a CPU nor CUDA runs here, and torch's compiler is
imported with the first: 4.2 s of processor time, and 0.07 s this way (two busy cores of an Intel
Xeon, bitsandbytes 0.50.2 after torch and transformers).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from loractl.startup import libraries


@contextmanager
def compiling_later() -> Iterator[None]:
    """A context in which torch.compile only remembers what to compile. With a plain start
    (`libraries.is_plain`), nothing is changed."""
    if libraries.is_plain():
        yield
        return
    import torch

    real = torch.compile
    torch.compile = functools.partial(_later, real)
    try:
        yield
    finally:
        torch.compile = real


def _later(real: Callable[..., Any], fn: Callable[..., Any] | None = None, **options: Any) -> Any:
    """What torch.compile returns, made when it is called."""
    if fn is None:
        return functools.partial(_later, real, **options)
    made: Callable[..., Any] | None = None

    @functools.wraps(fn)
    def called(*args: Any, **keywords: Any) -> Any:
        nonlocal made
        if made is None:
            made = real(fn, **options)
        return made(*args, **keywords)

    return called
