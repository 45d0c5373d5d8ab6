"""Say what machine this is, and in which dtype it trains: printed as one JSON line."""

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    import torch

    from loractl.models.device import choose_device, choose_dtype

    device = choose_device()
    dtype = str(choose_dtype("auto", device)).removeprefix("torch.")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "dtype": dtype,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "transformers", "peft", "trl")},
    }


def _cpu() -> str:
    """The processor's name and the widest instructions it has, which its name may hide."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    told = {key.strip(): value.strip() for key, value in told.items()}
    flags = told.get("flags", "").split()
    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
    widest = next((flag for flag in known if flag in flags), "no AVX2")
    return f"{told.get('model name', platform.machine())} ({widest})"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(describe()))
