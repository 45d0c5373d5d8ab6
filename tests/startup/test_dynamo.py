"""torch._dynamo comes in when something is compiled, and is then what it would have been."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loractl.startup import dynamo, importers

BODY = """
import time
time.sleep(0.2)
from . import inner
def disable(fn, recursive=True): return lambda: ("disabled", fn())
def allow_in_graph(fn): fn.allowed = True
def graph_break(): return "real"
{more}
value = 5
"""
Package = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Writes a package that takes the place of torch._dynamo, and gives its name."""

    def write(more: str = "", *, free: bool = True) -> str:
        name = f"waits_{len(list(tmp_path.iterdir()))}"
        room = tmp_path / name
        room.mkdir()
        (room / "__init__.py").write_text(BODY.format(more=more))
        (room / "inner.py").write_text("deep = 7")
        (room / "free.py").write_text("" if free else "raise ImportError")
        monkeypatch.setattr(dynamo, "NAME", name)
        monkeypatch.setattr(dynamo, "FREE", f"{name}.free")
        return name

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in [name for name in sys.modules if name.startswith("waits_")]:
        del sys.modules[name]


def waiting(name: str) -> Any:
    with dynamo.let_wait():
        module = __import__(name)
    assert not any(isinstance(finder, importers.Finder) for finder in sys.meta_path)
    return module


def is_waiting(module: ModuleType) -> bool:
    return "value" not in vars(module)


def test_a_module_waits_until_a_name_of_it_is_asked_for(package: Package) -> None:
    module = waiting(package())
    assert is_waiting(module)
    assert module.value == 5 and module.inner.deep == 7
    assert type(module) is ModuleType and module.graph_break() == "real"
    assert not hasattr(module, "another")


def test_an_import_from_inside_it_brings_all_of_it(package: Package) -> None:
    name = package()
    module = waiting(name)
    __import__(f"{name}.inner")
    assert not is_waiting(module)


def test_what_was_disabled_or_marked_before_is_so_afterwards(package: Package) -> None:
    module = waiting(package())

    def f() -> int:
        return 3

    called, other = module.disable(f), module.disable()(f)
    module.allow_in_graph(f)
    assert module.graph_break() is None
    assert called() == other() == 3 and called.__name__ == "f" and not hasattr(f, "allowed")
    assert is_waiting(module)
    assert module.value == 5
    assert called() == other() == ("disabled", 3) and f.allowed  # type: ignore[attr-defined]


def test_a_name_that_was_taken_before_does_the_work_of_the_real_one(package: Package) -> None:
    module = waiting(package())
    disable, mark = module.disable, module.allow_in_graph
    assert module.value == 5

    def f() -> int:
        return 3

    mark(f)
    assert disable(f)() == ("disabled", 3) and f.allowed  # type: ignore[attr-defined]


def test_what_is_no_function_is_disabled_by_the_real_one(package: Package) -> None:
    module = waiting(package())
    assert module.disable(int)() == ("disabled", 0)
    assert not is_waiting(module)


def test_threads_that_ask_at_once_all_find_it_whole(package: Package) -> None:
    module, found = waiting(package()), []
    threads = [threading.Thread(target=lambda: found.append(module.value)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [5] * 4


def test_a_module_that_cannot_be_run_says_why_and_is_not_there(package: Package) -> None:
    name = package("raise ValueError('broken')")
    module = waiting(name)
    with pytest.raises(ValueError, match="broken"):
        _ = module.value
    assert name not in sys.modules


def test_another_version_is_imported_at_once(package: Package) -> None:
    module = waiting(package(free=False))
    assert type(module) is ModuleType and not is_waiting(module)


REAL = """
import sys
import torch
from torch import nn
from loractl.startup import libraries
from loractl.training.optim import Rates, build_optimizer
if sys.argv[1] == "waits":
    libraries.import_()
import transformers.masking_utils
import transformers.generation.continuous_batching

def is_there():
    return "torch._dynamo.eval_frame" in sys.modules

layer = nn.Linear(3, 3)
nn.Embedding(5, 3, device="meta")
def apart(x):
    return x * 2 if sys.argv[1] else x
apart = torch.compiler.disable(apart)
optimizer = build_optimizer("adamw", {"w": layer.weight}, Rates(0.1, 0.1))
apart(layer(torch.ones(2, 3))).sum().backward()
optimizer.step()
optimizer.zero_grad()
before = is_there()
graphs = []
def backend(graph, inputs):
    graphs.append(len(graph.graph.nodes))
    return graph.forward
f = torch.compile(lambda x: apart(x + 1) - 3, backend=backend)
assert f(torch.ones(2)).tolist() == [1, 1]
assert is_there()
print(before, graphs)
"""


@pytest.mark.slow
def test_the_real_one_waits_through_training_and_then_compiles_as_ever() -> None:
    def run(how: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", REAL, how],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not done.returncode, done.stderr
        return done.stdout.strip()

    waits, comes_at_once = run("waits"), run("comes")
    assert waits.startswith("False ") and comes_at_once.startswith("True ")
    graphs = waits.removeprefix("False ")
    assert graphs == comes_at_once.removeprefix("True ") != "[]"


TRAIN = """
import sys
from loractl.cli.main import main
assert main(["train", sys.argv[1]]) == 0
print("torch._dynamo.eval_frame" in sys.modules)
"""


@pytest.mark.slow
def test_a_run_of_training_does_without_it(config_file: Callable[..., Path]) -> None:
    config = config_file("train: {steps: 2}")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TRAIN, str(config)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr
