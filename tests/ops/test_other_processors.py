"""The C files as GCC makes them for processors with fewer instructions hold to the same tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loractl.ops import native

OF_PRODUCTS = (
    *("test_gemm.py", "test_packed.py", "test_thin.py"),
    *("attention/test_tasks.py", "layer/test_block.py"),
)
LACKING = {
    "avx512_bf16": ("-mno-avx512bf16",),
    "avx512f": ("-mno-avx512bf16", "-mno-avx512f"),
}
"""What a processor lacks, and how GCC is told."""


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("lacking", LACKING)
def test_products_attention_and_layers_without(lacking: str, tmp_path: Path) -> None:
    """Widened bfloat16, with AVX-512 and with AVX2; in float32 the tiles of AVX2."""
    if lacking not in native.processor().split():
        pytest.skip(f"this processor has no {lacking}: all tests run as this one would")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nexec gcc "$@" {" ".join(LACKING[lacking])}\n')
    compiler.chmod(0o755)
    files = [str(Path(__file__).parent / name) for name in OF_PRODUCTS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, "CC": str(compiler)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout + done.stderr
