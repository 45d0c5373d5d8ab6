"""The device and dtype to compute with, and how much memory is free and was used."""

import os
import re
import resource
import subprocess
import sys

import torch

from loractl.errors import ModelError
from loractl.models.torch_dtypes import DTYPES

SEGMENTS = "expandable_segments:True"
"""A setting of torch's CUDA allocator: without it, rows of other lengths leave holes behind."""


def choose_device(wanted: str = "auto") -> torch.device:
    """The named device; auto: CUDA if available, then Apple's MPS, then the CPU.

    Raises ModelError for one that is not there.
    """
    there = [*(f"cuda:{n}" for n in range(n_gpus())), "cpu"]
    if torch.backends.mps.is_available():
        there.insert(-1, "mps")
    if wanted == "auto":
        wanted = there[0]
    wanted = "cuda:0" if wanted == "cuda" else wanted
    if wanted not in there:
        raise ModelError(f"found {wanted}, expected one of the devices here: {', '.join(there)}")
    if wanted.startswith("cuda"):
        os.environ.setdefault("PYTORCH_ALLOC_CONF", SEGMENTS)  # read when CUDA is first used
        torch.cuda.set_device(int(wanted.partition(":")[2]))
    return torch.device(wanted)


def n_gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of the frozen base: the requested one, or the one that is fast on this device.

    bfloat16 matrix products run 2 to 2.5 times as fast as float32 ones on a CPU with avx512_bf16,
    and far slower on one without. GPUs older than Ampere emulate it; they get float16.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        return torch.bfloat16 if can.get("avx512_bf16") or can.get("amx_bf16") else torch.float32
    return torch.float32


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on this device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if sys.platform != "darwin":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free_on_mac(subprocess.run(["vm_stat"], capture_output=True, text=True).stdout)


def free_on_mac(said: str) -> int:
    """Bytes that are free or can be freed at once, from what `vm_stat` says; MPS shares them."""
    size = re.search(r"page size of (\d+) bytes", said)
    kinds = ("free", "inactive", "speculative", "purgeable")
    pages = [re.search(rf"^Pages {kind}:\s+(\d+)\.", said, re.MULTILINE) for kind in kinds]
    return sum(int(one[1]) for one in pages if one) * (int(size[1]) if size else 4096)


def peak_memory(device: torch.device) -> int:
    """Peak bytes of this process: allocated on CUDA, resident elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, Linux in KiB
