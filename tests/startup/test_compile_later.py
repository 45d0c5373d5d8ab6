"""What is decorated with torch.compile meanwhile is compiled when it is called, and not before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import loractl
from loractl.startup.compile_later import compiling_later

IMPORT = """
import sys, torch
from loractl.startup.compile_later import compiling_later
with compiling_later():
    import bitsandbytes
print("torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.parametrize(
    ("plain", "compiler"), [("0", "False"), pytest.param("1", "True", marks=pytest.mark.slow)]
)
def test_bitsandbytes_does_not_bring_the_compiler(plain: str, compiler: str) -> None:
    home = str(Path(loractl.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": home, "LORACTL_PLAIN_START": plain}
    done = subprocess.run([sys.executable, "-c", IMPORT], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == compiler, done.stderr


def test_what_was_decorated_is_compiled_when_it_is_called() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    real = torch.compile
    with compiling_later():
        one = torch.compile(double, backend=backend)
        other = torch.compile(backend=backend)(double)
    assert torch.compile is real and not graphs
    assert one.__name__ == "double"
    for compiled in (one, other):
        assert compiled(torch.ones(2)).tolist() == [2.0, 2.0]
    assert graphs


def test_an_error_inside_leaves_torch_as_it_was() -> None:
    real = torch.compile
    with pytest.raises(ImportError), compiling_later():
        raise ImportError
    assert torch.compile is real
