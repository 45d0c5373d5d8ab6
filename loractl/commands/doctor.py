"""`loractl doctor`: what this machine supports, and which packages are installed."""

import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from loractl import __version__, console, text

PACKAGES = ("torch", "transformers", "safetensors", "tokenizers")
EXTRAS = {"gguf": ("gguf", "accelerate")}


def run(*, as_json: bool) -> int:
    """Report versions, devices, memory and disk, and what is missing with its remedy."""
    facts = gather_facts()
    if as_json:
        console.result(json.dumps(facts, indent=2))
        return 0
    rows = [[name, str(value)] for name, value in facts.items() if name != "missing"]
    console.result(text.table(["item", "found"], rows, has_numbers=False))
    for line in facts["missing"]:
        console.result(f"missing: {line}")
    return 0


def gather_facts() -> dict[str, Any]:
    """The facts by name; `missing` lists what would enable more features."""
    import torch

    from loractl.models.device import choose_device, choose_dtype, free_memory
    from loractl.models.torch_dtypes import dtype_word
    from loractl.ops import native

    device = choose_device()
    dtype = dtype_word(choose_dtype("auto", device))
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "loractl": __version__,
        **{package: _installed_version(package) or "missing" for package in PACKAGES},
        "device": f"{device.type} ({name})",
        "dtype auto": dtype,
        "kernels": "torch's" if native.why_missing(torch.float32) else "compiled for this machine",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "free memory": text.size(free_memory(device)),
        "free disk here": text.size(shutil.disk_usage(".").free),
    }
    missing = [
        f"{', '.join(absent)}, for .gguf base models; pip install 'loractl[{extra}]'"
        for extra, packages in EXTRAS.items()
        if (absent := [package for package in packages if _installed_version(package) is None])
    ]
    if device.type == "cpu":
        if why := native.why_missing(torch.float32):
            missing.append(
                f"a C compiler to build the fast kernels, without which steps are slower: {why}"
            )
        missing.append(
            "a GPU: training runs on the CPU, which suits models up to about 1B parameters"
        )
    return {**facts, "missing": missing}


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
