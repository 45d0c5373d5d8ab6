"""What is freed goes back to the system: seen from outside, in a process of its own."""

import subprocess
import sys

import pytest

CODE = """
import sys, torch
from loractl.training.heap import hold_mmap_threshold_

def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

if sys.argv[1] == "held":
    hold_mmap_threshold_()
torch.ones(4 << 20)  # 16 MiB, freed: from here glibc's own threshold is as high
before = resident()
blocks = [torch.ones(1 << 20) for _ in range(40)]  # of 4 MiB
last = [bytes(100_000) for _ in range(8)]  # stay above them in a heap
blocks.clear()
print(resident() - before)
"""


def left(how: str) -> float:
    """MiB that stay resident after 160 MiB were freed."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], capture_output=True, check=True, text=True
    )
    return float(done.stdout)


@pytest.mark.slow
def test_large_blocks_that_are_freed_leave_the_process() -> None:
    assert left("held") < 20


@pytest.mark.slow
def test_left_alone_the_c_library_keeps_them() -> None:
    assert left("alone") > 100
