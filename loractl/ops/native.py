"""Compiles the C files of this package with the machine's own compiler on first use, and caches the
library.

It knows nothing about what the functions compute; their callers do, and fall back to plain formulas
where `compiled` returns None. Compared with torch.compile this saves seconds of imports and tracing
at each start: the compiler takes about 3 s once, a later start 5 ms.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from loractl.ops.native_cache import load_library
from loractl.paths import cache_home

HERE = Path(__file__).parent / "c"
SOURCES = ("kernels.c", "packed.c", "pack.c", "gemm.c", "thin.c", "attention.c", "layer.c")
INCLUDED = ("real.h", "calls.h", "panels.h", "ggml.h", "packed.h", "arena.h", "tile.h", "layer.h")
FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    # Lets loops with a conditional be vectorized. No -ffast-math: NaN must propagate.
    *("-fno-math-errno", "-fno-trapping-math"),
    # No second vector loop for the tail of a row: 0.6 s instead of 1.1 s to compile.
    *("--param", "vect-epilogues-nomask=0"),
)
WIDER = "-mprefer-vector-width=512"
"""For Intel processors with AVX-512, of which GCC would use only half the width: it makes gates 1.2
times as fast, the loss 1.45 times, and norms no faster (scripts/LOG.md)."""
DEFINES: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("-DBF16",)}

POINTER, SIZE, REAL, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
WORD = ctypes.c_uint32
MATRIX = (POINTER, SIZE)  # address and row stride
HEADS = (POINTER, SIZE, SIZE)  # address, row stride, head stride
ARGUMENTS: dict[str, tuple[type, ...]] = {
    "rms_norm": (*HEADS, POINTER, *HEADS, POINTER, *[SIZE] * 3, REAL, REAL, INT, INT),
    "rms_norm_backward": (*HEADS * 3, POINTER, POINTER, *[SIZE] * 3, REAL, INT),
    "rotary": (*HEADS, *MATRIX, *MATRIX, *[SIZE] * 3, INT, INT),
    "gated": (*MATRIX * 3, SIZE, SIZE, INT, INT),
    "gated_backward": (*MATRIX * 3, SIZE, SIZE, INT, INT),
    "dropout": (*MATRIX * 2, SIZE, SIZE, WORD, WORD, INT, REAL, INT, INT),
    "activated": (*MATRIX * 2, SIZE, SIZE, INT, INT),
    "activated_backward": (*MATRIX * 3, SIZE, SIZE, INT, INT),
    "softmax_loss": (*MATRIX, POINTER, POINTER, SIZE, SIZE, *[REAL] * 3, INT, INT),
    "workspace": (SIZE, SIZE, SIZE, SIZE),
    "unpack": (POINTER, SIZE, SIZE, POINTER, INT),
    "pack_nf4": (POINTER, SIZE, POINTER, POINTER, INT),
    "products": (*MATRIX * 2, SIZE, SIZE, POINTER, SIZE, POINTER, INT),
    "attention_space": (SIZE, SIZE, SIZE),
    "attention": (POINTER, INT, POINTER, SIZE, INT),
    "thin_workspace": (SIZE, SIZE, SIZE),
    "thin": (*MATRIX, *[SIZE] * 3, *MATRIX, REAL, *MATRIX * 2, POINTER, POINTER, INT),
    "layer_kept": (POINTER, POINTER),
    "layer_space": (POINTER, POINTER),
    "layer_step": (POINTER, POINTER, SIZE),
    "layer_forward": (*[POINTER] * 7, INT),
    "layer_backward": (*[POINTER] * 5, INT, *[POINTER] * 3, INT),
}
"""The parameters of each function, in order."""
COUNTS = (
    *("workspace", "thin_workspace", "attention_space"),
    *("layer_kept", "layer_space", "layer_step"),
)
"""The functions that return a value: how many numbers another function needs."""

KEYS = (("vendor_id", "CPU implementer"), ("flags", "Features"))
"""Prefixes of the /proc/cpuinfo lines that give a processor's maker and its features."""


class NotBuilt(Exception):
    """Why there is no library here; pieces.py works without it."""


def compiled(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The functions for rows of one dtype, or None; `why_missing` gives the reason."""
    return find_library(dtype)[0]


def why_missing(dtype: torch.dtype) -> str:
    """Why there is no library for a dtype, in one line; empty if there is one."""
    return find_library(dtype)[1]


@functools.cache
def find_library(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    try:
        if os.environ.get("LORACTL_NATIVE") == "0":
            raise NotBuilt("LORACTL_NATIVE is 0")
        if dtype not in DEFINES:
            raise NotBuilt(f"the C kernels support float32 and bfloat16, not {dtype}")
        return _declare_functions(_open_library(dtype)), ""
    except NotBuilt as reason:
        return None, str(reason)


def _declare_functions(found: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in ARGUMENTS.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, SIZE if name in COUNTS else None
    return found


def _open_library(dtype: torch.dtype) -> ctypes.CDLL:
    """The library for these sources, compiler and processor, from the cache or newly built."""
    _need_the_openmp_of_torch()
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")
    if compiler is None:
        raise NotBuilt("there is no C compiler (cc, gcc or $CC)")
    wider = [WIDER] if {"GenuineIntel", "avx512f"} <= set(processor().split()) else []
    command = [os.path.abspath(compiler), *FLAGS, *wider, *DEFINES[dtype], *SOURCES]
    texts = [(HERE / name).read_text("utf-8") for name in (*SOURCES, *INCLUDED)]
    parts = (*texts, *command, _compiler_output([command[0], "--version"]), processor())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    place = cache_home() / "kernels" / f"{key}.so"
    try:
        return load_library(
            place, tuple(ARGUMENTS), lambda working: _compile_library(command, working)
        )
    except OSError as error:
        raise NotBuilt(f"the library cannot be written or loaded: {error}") from None


def _need_the_openmp_of_torch() -> None:
    """The library needs libgomp.so.1 by name and gets torch's if that is already loaded; with a
    second copy each would have its own threads, and they would compete for the cores."""
    try:
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except (OSError, AttributeError):
        raise NotBuilt("torch has not loaded GCC's OpenMP library (libgomp.so.1)") from None


def _compile_library(command: list[str], working: Path) -> Path:
    made = working / "kernels.so"
    _compiler_output([*command, "-o", str(made), "-lm"])
    return made


def _compiler_output(command: list[str]) -> str:
    """The output of a compiler run; raises NotBuilt with the first error message if it fails."""
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuilt(f"{command[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        first = (complaints or done.stderr.splitlines() or [f"exit code {done.returncode}"])[0]
        raise NotBuilt(f"{command[0]} cannot compile {HERE}: {first.strip()}")
    return done.stdout


@functools.cache
def processor() -> str:
    """The machine's architecture, maker and instruction sets, for which -march=native generates
    code: words separated by spaces, with one at the end."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [f"flags: {platform.processor()}"]
    told = (next((line for line in lines if line.startswith(key)), "") for key in KEYS)
    return " ".join([platform.machine(), *" ".join(told).split(), ""])
