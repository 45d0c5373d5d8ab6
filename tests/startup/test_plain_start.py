"""LORACTL_PLAIN_START=1: everything is imported as Python does, and does the same."""

import gc
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.utils import import_utils

from loractl.startup import libraries

ANSWER = """
import inspect, sys
searches = inspect.getmodule
from loractl.startup import libraries
libraries.import_transformers()
libraries.import_()
ours = [type(it).__module__ for it in sys.meta_path if type(it).__module__.startswith("loractl")]
import transformers.utils.import_utils as import_utils
assert not ours and inspect.getmodule is searches
assert import_utils.define_import_structure.__module__ == import_utils.__name__
import torch, transformers
real = type(sys.modules["torch._dynamo"]).__module__ == "builtins"
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.arange(1, 9)[None]
answer = model.generate(ids, attention_mask=ids > 0, max_new_tokens=8, do_sample=False)
print(real, answer.tolist(), model(ids).logits.double().sum().item())
"""


def answer_of(base: Path, cache: Path, plain: str) -> tuple[str, str]:
    """Whether torch._dynamo is the real one, and what a model answers, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWER.replace("import torch\n", "import torch, transformers\n"),
         str(base)],
        env={**os.environ, "LORACTL_CACHE": str(cache), "LORACTL_PLAIN_START": plain},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    real, _, answer = done.stdout.strip().partition(" ")
    return real, answer


@pytest.mark.slow
def test_a_plain_start_leaves_no_trace_and_a_model_answers_alike(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    plain, quick = tmp_path / "plain", tmp_path / "quick"
    real, answer = answer_of(base("llama"), plain, "1")
    waits, same = answer_of(base("llama"), quick, "0")
    assert answer == same != ""
    assert (real, waits) == ("True", "False"), "only the quick start lets torch._dynamo wait"
    assert not plain.exists() and len(list((quick / "transformers").iterdir())) == 1


def test_nothing_is_in_the_way_of_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> tuple[object, ...]:
        lists = import_utils.define_import_structure
        return list(sys.meta_path), inspect.getmodule, lists, gc.isenabled()

    as_ever = state()
    with libraries.quickly():
        assert all(now != then for now, then in zip(state(), as_ever, strict=True))
    monkeypatch.setenv("LORACTL_PLAIN_START", "1")
    with libraries.quickly():
        assert state() == as_ever
    assert state() == as_ever
