"""Builds guard.cpp and loads it before torch: a CPU build of torch then believes in one GPU."""

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


class UnbuildableError(Exception):
    """There is no C++ compiler, or it cannot build guard.cpp; the message is its first error."""


def built() -> Path:
    """The library, compiled once per source and version of torch. Raises UnbuildableError."""
    torch = _torch()
    key = hashlib.sha256(SOURCE.read_bytes() + (torch / "version.py").read_bytes()).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"loractl-device-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    out = place / f"{key}.so"
    if out.is_file():
        return out
    new = out.with_suffix(f".{os.getpid()}")
    headers = [torch / "include", torch / "include" / "torch" / "csrc" / "api" / "include"]
    command = ["g++", "-O1", "-shared", "-fPIC", "-std=c++20", str(SOURCE), "-o", str(new)]
    command += [f"-I{path}" for path in headers]
    command += [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise UnbuildableError(f"g++: {error.strerror}") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise UnbuildableError(f"g++: {(errors or ['failed'])[0]}")
    os.replace(new, out)
    return out


def load() -> None:
    """Load torch's libraries and the guard; afterwards `import torch` finds them."""
    lib = _torch() / "lib"
    of_openmp = sorted(lib.glob("libgomp*"))
    for path in [*of_openmp, lib / "libc10.so", lib / "libtorch_cpu.so", built()]:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _torch() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent
