"""What the fault drivers share: warm processes, a run without a fault, and what must equal it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import loractl
from loractl.artifacts.run import checkpoint
from tests.tiny import chat_rows, write_jsonl

FULL = bool(os.environ.get("LORACTL_FAULTS"))
"""Set by `scripts/test --faults`: every fault is tried, not a sample."""
TIMES = ("tokens_per_s", "peak_memory_bytes")

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"data": {"packing": False}},
    "dropout-accumulation-shuffle": {
        "lora": {"dropout": 0.2},
        "train": {"batch_size": 2, "gradient_accumulation": 2},
        "data": {"packing": False},
    },
    "packing-evaluation": {
        "data": {"packing": True, "max_length": 128, "eval": 0.25},
        "train": {"batch_size": 2, "eval_every": 3, "early_stopping": 50, "report": True},
    },
    "adalora": {
        "method": "adalora",
        "lora": {
            "rank": 8,  # the default: AdaLoRA starts at its own
            "adalora": {
                "initial_rank": 6,
                "target_rank": 3,
                "warmup_steps": 2,
                "final_steps": 2,
                "every": 1,
            },
        },
    },
    "rank-schedule": {"lora": {"rank_schedule": {3: 6, 6: 2}}},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    name: {
        "lora": {"rank": 128, "dropout": 0.1},  # wide enough for 8 bits
        "train": {"optimizer": name, "learning_rate": 0.5 if name == "sgd" else 2e-3},
    }
    for name in ("adamw-8bit", "adamw-paged", "sgd", "adafactor", "lion")
}

HELD: dict[str, dict[str, Any]] = {
    "nf4": {"model": {"quantization": "nf4-double"}},
    "offload": {"model": {"offload": "disk"}, "train": {"gradient_accumulation": 2}},
    "nf4-offload": {"model": {"quantization": "nf4", "offload": "disk"}},
}
"""Bases that are not plain weights in memory."""


@dataclass
class Warm:
    """The process of warm.py, and the processes it forked."""

    directory: Path  # for what they say
    server: subprocess.Popen[str]
    count: int = field(default=0)

    def ask(self, **request: Any) -> Any:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, *argv: object, hold: bool = False, **limits: int) -> "Process":
        self.count += 1
        log = self.directory / f"{self.count}.log"
        words = [str(word) for word in argv]
        pid = self.ask(do="start", argv=words, log=str(log), hold=hold, limits=limits)
        return Process(self, pid, log)

    def run(self, *argv: object, **limits: int) -> "Process":
        process = self.start(*argv, **limits)
        process.wait()
        return process


@dataclass
class Process:
    """A forked `loractl`."""

    warm: Warm
    pid: int
    log: Path
    code: int | None = None

    def go(self) -> None:
        self.warm.ask(do="go", pid=self.pid)

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code, or the negative number of the signal that ended it."""
        until = time.monotonic() + seconds
        while self.code is None:
            self.code = self.warm.ask(do="ended", pid=self.pid)
            assert time.monotonic() < until, f"does not end: {self.said}"
            if self.code is None:
                time.sleep(0.005)
        return self.code

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill_after(self, seconds: float) -> int:
        """SIGKILL after some time, if it still lives then."""
        until = time.monotonic() + seconds
        while self.code is None and time.monotonic() < until:
            self.code = self.warm.ask(do="ended", pid=self.pid)
            time.sleep(min(0.005, max(0.0, until - time.monotonic())))
        if self.code is None:
            self.send(signal.SIGKILL)
        return self.wait()

    @property
    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory, base: Callable[..., Path]) -> Iterator[Warm]:
    ours = str(Path(loractl.__file__).parent.parent)
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("warm.py")), str(base("llama"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ours, "OMP_NUM_THREADS": "1"},
    )
    assert server.stdout and server.stdin
    assert json.loads(server.stdout.readline()) == "ready"
    yield Warm(tmp_path_factory.mktemp("said"), server)
    server.stdin.close()
    server.stdout.close()
    server.wait()


@dataclass
class Whole:
    """A run that no fault touched."""

    config: Path
    run: Path
    seconds: float

    @property
    def steps(self) -> int:
        return int(yaml.safe_load(self.config.read_text())["train"]["steps"])


@pytest.fixture(scope="session")
def whole(
    tmp_path_factory: pytest.TempPathFactory, warm: Warm, base: Callable[..., Path]
) -> Callable[..., Whole]:
    """whole("plain") -> that config's run without a fault; made once."""
    made: dict[str, Whole] = {}

    def make(name: str = "plain") -> Whole:
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            config: dict[str, Any] = {
                "model": {"name_or_path": str(base("llama")), "dtype": "float32"},
                "lora": {"rank": 4, "target_modules": "all-linear"},
                "data": {"train": str(write_jsonl(directory / "train.jsonl", chat_rows(24)))},
                "train": {
                    "steps": 8,
                    "batch_size": 4,
                    "learning_rate": 1e-2,
                    "save_every": 2,
                    "report": False,
                },
            }
            for section, values in (CONFIGS | OPTIMIZERS | HELD)[name].items():
                config[section] = (
                    {**config[section], **values} if isinstance(values, dict) else values
                )
            path = directory / "config.yaml"
            path.write_text(yaml.safe_dump(config))
            for out in ("first", "whole"):  # the second finds its tokens in the cache
                began = time.monotonic()
                process = warm.run("train", path, "--out", directory / out)
                assert process.code == 0, process.said
            made[name] = Whole(path, directory / "whole", time.monotonic() - began)
            shutil.rmtree(directory / "first")
        return made[name]

    return make


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what a clock or a meter said."""
    log = run / "metrics.jsonl"
    text = log.read_text() if log.exists() else ""
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMES}
        for line in text.splitlines()
    ]


def names(run: Path) -> set[str]:
    """What a run holds, besides its report: a kill after it was published leaves it without one."""
    return {path.name for path in run.iterdir()} - {"report.html", "report.json"}


def assert_same(run: Path, whole: Whole, *, most: int = 2) -> None:
    """A run that was cut and went on is byte for byte the one that was not."""
    newest = f"checkpoints/step-{whole.steps:06d}"
    for name in (
        "adapter/adapter_model.safetensors",
        f"{newest}/adapter_model.safetensors",
        f"{newest}/optimizer.safetensors",
    ):
        assert (run / name).read_bytes() == (whole.run / name).read_bytes(), name
    assert rows(run) == rows(whole.run)
    assert names(run) == names(whole.run)
    best, expected = (one / "checkpoints" / "best" for one in (run, whole.run))
    assert best.is_dir() == expected.is_dir() and not (best.is_dir() and checkpoint.faults(best))
    for path in sorted(expected.glob("*")):
        assert (best / path.name).read_bytes() == path.read_bytes(), path.name
    saved = [path.name for path in (run / "checkpoints").iterdir() if path.name != "best"]
    assert len(saved) <= most and all(name.startswith("step-") for name in saved), saved


def finish(warm: Warm, whole: Whole, run: Path, *, most: int = 2) -> None:
    """Resume without help, to the end; `most` checkpoints may be there then."""
    process = warm.run("train", whole.config, "--out", run, "--resume")
    assert process.code == 0, process.said
    assert_same(run, whole, most=most)
