"""What the machine is, and its ceilings: against these, speeds are stated."""

import importlib.metadata
import os
from collections.abc import Callable

import torch

from gpucheck.place import Check, Place
from gpucheck.report import Figure, Found

PACKAGES = ("torch", "transformers", "triton", "peft", "safetensors", "pydantic", "datasets")
GIB = 1 << 30
N = 8192
"""Rows and columns of the matrices multiplied: 1.1 TFLOP, over a millisecond on an H200."""
COPIED = 4 * GIB


def versions(place: Place) -> dict[str, object]:
    """Of packages, the device and its driver's CUDA."""
    found: dict[str, object] = {name: _version(name) for name in PACKAGES}
    major, minor = torch.cuda.get_device_capability(place.device)
    return found | {
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(place.device),
        "capability": f"{major}.{minor}",
        "pretend": place.pretend,
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF"),
        "cublas workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(place: Place) -> Found:
    free, total = (n / GIB for n in torch.cuda.mem_get_info(place.device))
    said = ", ".join(f"{key} {value}" for key, value in versions(place).items() if value)
    return Found((Figure("free", free, unit="GiB"), Figure("of", total, unit="GiB")), said)


def seconds_of(work: Callable[[], object], times: int) -> float:
    """Seconds that the device takes for `work`, the median of `times` after three warm-ups."""
    for _ in range(3):
        work()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    spans = [a.elapsed_time(b) / 1e3 for a, b in zip(marks[:-1], marks[1:], strict=True)]
    return sorted(spans)[len(spans) // 2]


def matmul(place: Place) -> Found:
    place.needs_a_gpu("speed")
    a, b = (torch.randn(N, N, device=place.device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * N**3 / seconds_of(lambda: a @ b, 20)
    place.measured["matmul"] = rate
    return Found((Figure("bfloat16", rate / 1e12, unit="TFLOP/s"),))


def copies(place: Place) -> Found:
    place.needs_a_gpu("speed")
    a = torch.empty(COPIED, dtype=torch.uint8, device=place.device)
    b = torch.empty_like(a)
    rate = 2 * COPIED / seconds_of(lambda: b.copy_(a), 10)  # read and written
    place.measured["copy"] = rate
    return Found((Figure("read and written", rate / 1e9, unit="GB/s"),))


CHECKS = (
    Check("machine/versions", describe, 1),
    Check("machine/matmul", matmul, 3),
    Check("machine/copies", copies, 2),
)
