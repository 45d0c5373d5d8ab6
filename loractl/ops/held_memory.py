"""Memory of the CPU that is used again, step after step.

Asked for anew it costs a page fault for every 4 KiB, up to 160,000 a step of 4 x 256 tokens of
SmolLM2-135M; and in the C library's heap small tensors settle between the large ones, so that it
grows. With what layers, products and the head need held apart from it such a step was 1.05 to 1.07
times as fast, and the process peaked at 1,729 MB in place of 1,841 (scripts/LOG.md).
"""

import mmap
import os
import threading

import torch
from torch import Tensor


class OfThread(threading.local):
    def __init__(self) -> None:
        self.scratch: dict[str, Tensor] = {}
        self.idle: list[Tensor] = []


kept = OfThread()


def scratch(name: str, values: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(values,) at the start of a page, with anything in them: the same memory whenever the calling
    thread asks by this name, so only until it asks again."""
    n_bytes, held = values * dtype.itemsize, kept.scratch
    if name in held and held[name].nbytes < n_bytes:
        del held[name]  # before the larger one comes
    if name not in held:
        held[name] = _map_pages(n_bytes)
    return held[name].view(dtype)[:values]


def take(values: int) -> Tensor:
    """At least that many float32 values, with anything in them, which nobody else has until they
    are given back; those never given back are freed as any tensor is."""
    n_bytes, idle = values * torch.float32.itemsize, kept.idle
    fitting = [at for at, block in enumerate(idle) if block.nbytes >= n_bytes]
    if fitting:
        return idle.pop(min(fitting, key=lambda at: idle[at].nbytes))
    if idle:  # blocks are as many as were in use at a time: one that is too small makes room
        idle.pop()
    return _map_pages(n_bytes)


def give(block: Tensor) -> None:
    """Take back what `take` gave."""
    kept.idle.append(block)


def _map_pages(n_bytes: int) -> Tensor:
    """Float32, whole pages, apart from the C library's heap. Raises MemoryError."""
    n_bytes = max(-(-n_bytes // mmap.PAGESIZE), 1) * mmap.PAGESIZE
    if os.name != "posix":
        return torch.empty(n_bytes // torch.float32.itemsize)
    # Private: what a forked process calculates must not land in this one's.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        mapped = mmap.mmap(-1, n_bytes, flags=private)
    except OSError as error:
        raise MemoryError(f"{error.strerror}: {n_bytes} bytes") from None
    return torch.frombuffer(mapped, dtype=torch.float32)
