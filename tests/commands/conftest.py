"""What the tests of the commands share: what was said, a run to compare with, signals in a run."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loractl.artifacts.peft.adapter import ABOUT
from loractl.progress import Progress
from tests.commands.merges import NF4, amend
from tests.runs import timeless, train

Config = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
HARD = (  # everything that must survive a resume
    "lora: {dropout: 0.2}",
    "train: {steps: 7, batch_size: 2, gradient_accumulation: 2, save_every: 2}",
    "data: {max_length: 128, packing: true}",
)


def said(capsys: Capture) -> dict[str, Any]:
    """What a command printed with --json."""
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def assert_refused(capsys: Capture, *words: str) -> None:
    """The last that was said is an error of at most three lines with these words."""
    err = capsys.readouterr().err
    block = err[err.index("error:") :]
    assert all(word in block for word in words), err
    assert "Traceback" not in err and len(block.splitlines()) <= 3


def assert_same_run(one: Path, other: Path) -> None:
    """Final adapter, newest checkpoint's tensors and metrics are equal, times apart."""
    for name in (
        "adapter/adapter_model.safetensors",
        "checkpoints/step-000007/optimizer.safetensors",
    ):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert timeless(one) == timeless(other)


@pytest.fixture(scope="session")
def whole(
    tmp_path_factory: pytest.TempPathFactory, base: Callable[..., Path]
) -> Callable[..., Path]:
    """whole(config) -> the directory of the run of HARD, trained without a break, once."""
    made: list[Path] = []

    def run(config: Path) -> Path:
        if not made:
            run = tmp_path_factory.mktemp("whole") / "run"
            assert train(config, "--out", str(run)) == 0
            made.append(run)
        return made[0]

    return run


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """stop_after(3) lets a signal arrive in the third step, as the shell would send it; None: in
    each."""

    def arrange(step: int | None, number: int = signal.SIGINT) -> None:
        show = Progress.step

        def shown(self: Progress, done: int, text: str, *, seconds_left: float) -> None:
            show(self, done, text, seconds_left=seconds_left)
            if step in (None, done):
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Progress, "step", shown)

    return arrange


@pytest.fixture
def on_nf4(base: Config, adapter_dir: Config) -> Config:
    """on_nf4(base) -> an adapter that records that it was trained on the base in nf4."""

    def make(where: Path | None = None, **settings: Any) -> Path:
        directory = adapter_dir(where or base("llama"), **settings)
        amend(directory, ABOUT, quantization=NF4.about(), dtype=NF4.dtype)
        return directory

    return make
