"""Runs whose layers stay on disk: the same bits as in memory, or a reason why not."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from loractl.cli.main import main
from loractl.engine import offload
from tests.commands.conftest import HARD, assert_refused, assert_same_run
from tests.runs import train
from tests.sweeps import sampled
from tests.tiny import save_tiny

Config = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
Stop = Callable[..., None]
DISK = "model: {offload: disk}"
KINDS = ["none", "nf4", "nf4-double", "int8"]


@pytest.fixture(scope="module")
def deep(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Callable[[], Path]:
    """A base of five layers: two buffers do not hold them all."""
    directory = tmp_path_factory.mktemp("deep")
    save_tiny(directory, tokenizer, "llama", num_hidden_layers=5)
    return lambda: directory


@pytest.fixture
def config(config_file: Config, deep: Callable[[], Path]) -> Config:
    return partial(config_file, *HARD, "lora: {dropout: 0.0}", model=deep())


def both_runs(config: Config, tmp_path: Path, *sections: str) -> None:
    for name, more in (("memory", ()), ("disk", (DISK,))):
        written = config("train: {gradient_checkpointing: true}", *sections, *more)
        assert train(written, "--out", str(tmp_path / name)) == 0
    assert_same_run(tmp_path / "disk", tmp_path / "memory")


@pytest.mark.parametrize("kind", sampled(KINDS, "none", "nf4-double"))
def test_a_run_from_disk_is_the_run_in_memory(kind: str, config: Config, tmp_path: Path) -> None:
    both_runs(
        config, tmp_path, f"model: {{quantization: {kind}}}", "train: {batch_size: 2}",
        "train: {gradient_accumulation: 3, eval_every: 2}", "data: {eval: 0.2}",
    )  # fmt: skip


@pytest.mark.parametrize(
    "section",
    sampled(
        [
            "method: dora",
            "lora: {init: pissa}",
            "lora: {dropout: 0.1}",
            "train: {kernels: plain}",
            "model: {add_tokens: ['<new>']}",
        ],
        "method: dora",
        "lora: {init: pissa}",
    ),
)
def test_whatever_is_trained(section: str, config: Config, tmp_path: Path) -> None:
    both_runs(config, tmp_path, "model: {quantization: nf4}", section)


def test_a_stopped_run_goes_on_bit_for_bit(
    config: Config, stop_after: Stop, tmp_path: Path
) -> None:
    written = config("model: {quantization: nf4-double}", DISK)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(written, "--out", str(whole)) == 0
    stop_after(3)
    assert train(written, "--out", str(run)) == 130
    stop_after(0)
    assert train(written, "--out", str(run), "--resume") == 0
    assert_same_run(run, whole)


def test_check_takes_its_step_from_disk(config_file: Config, capsys: Capture) -> None:
    config = config_file(DISK)
    assert main(["check", str(config)]) == 0
    assert "gradients" in capsys.readouterr().out


def test_auto_streams_where_memory_is_short(
    config_file: Config, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file("model: {offload: auto}", "train: {steps: 1}")
    assert train(config) == 0
    assert "read from disk" not in capsys.readouterr().err
    monkeypatch.setattr(offload, "free_memory", lambda device: 1 << 20)
    assert train(config, "--overwrite") == 0
    assert "the layers are read from disk when they compute" in capsys.readouterr().err


def test_on_a_cpu_cpu_changes_nothing_and_says_so(config_file: Config, capsys: Capture) -> None:
    assert train(config_file("model: {offload: cpu}", "train: {steps: 1}")) == 0
    assert "model.offload: cpu changes nothing here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (("method: full",), "model.offload: method: full trains every weight"),
        (("train: {kernels: compile}",), "model.offload: train.kernels: compile recomputes"),
        (
            ("lora: {modules_to_save: [down_proj], target_modules: [q_proj]}",),
            "model.layers.0.mlp.down_proj is trained whole",
        ),
        (
            ("lora: {modules_to_save: [input_layernorm]}",),
            "model.layers.0.input_layernorm is trained whole",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    sections: tuple[str, ...], words: str, config_file: Config, capsys: Capture
) -> None:
    assert train(config_file(DISK, *sections)) == 2
    assert_refused(capsys, words)
