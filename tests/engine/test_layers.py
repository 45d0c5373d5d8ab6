"""How a run gets its hidden states, and that what it keeps of them changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.artifacts import files
from loractl.cli.main import main
from loractl.config import loader
from loractl.engine.session import assemble
from loractl.models.fast.activations import Fused
from loractl.paths import cache_home
from loractl.records import DataState
from tests.runs import rows_of, timeless, tree

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
UPPER = "lora: {layers: [1]}"
DROPPING = "lora: {layers: [1], dropout: 0.1}"
LONG = "train: {steps: 6, save_every: 3}"


def train(config: Path, *options: str) -> int:
    return main(["train", str(config), *options])


@pytest.mark.parametrize("lora", [UPPER, DROPPING])
def test_a_run_that_keeps_the_frozen_layers_learns_what_one_that_does_not_learns(
    lora: str, config_file: Make, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file(lora, LONG)
    assert train(config, "--out", str(tmp_path / "kept")) == 0
    said = capsys.readouterr().err
    assert "the output of the lowest layer (" in said and "kept in" in said
    assert train(config, "--out", str(tmp_path / "off"), "--set", "train.cache_trunk=off") == 0
    assert "computed once" not in capsys.readouterr().err
    kept, off = (rows_of(tmp_path / name) for name in ("kept", "off"))
    assert len(kept) == len(off) >= 6
    for one, other in zip(kept, off, strict=True):
        if "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    left = [path.name for path in cache_home().iterdir()]
    assert set(left) <= {"tokens", "kernels", "transformers", "bases", "packed"}, (
        "the file of the run has no name"
    )


@pytest.mark.parametrize("lora", [UPPER, DROPPING])
def test_a_run_that_keeps_them_is_resumed_bit_for_bit(
    lora: str, config_file: Make, tmp_path: Path
) -> None:
    config = config_file(lora, LONG)
    assert train(config, "--out", str(tmp_path / "whole")) == 0
    short = ("--set", "train.steps=3", "--out", str(tmp_path / "cut"))
    assert train(config, *short, "--set", "train.schedule=constant") == 0
    whole = ("--out", str(tmp_path / "constant"), "--set", "train.schedule=constant")
    assert train(config, *whole) == 0
    resumed = ("--out", str(tmp_path / "cut"), "--set", "train.schedule=constant")
    assert train(config, *resumed, "--resume", "--extend") == 0
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "constant")
    adapters = [tree(tmp_path / name / "adapter") for name in ("cut", "constant")]
    assert adapters[0]["adapter_model.safetensors"] == adapters[1]["adapter_model.safetensors"]


def test_nothing_is_kept_where_it_never_comes_again_or_does_not_fit(
    config_file: Make, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(config_file(UPPER, "train: {epochs: 1, steps: null}")) == 0
    assert "the lowest layer" not in capsys.readouterr().err
    monkeypatch.setattr(files, "free_bytes", lambda path: 128 << 10)  # under twice 86 KiB
    assert train(config_file(UPPER, LONG), "--overwrite") == 0
    assert "is not kept for later epochs: only 128 KiB free" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "method"), [("gpt2", "lora"), ("llama", "dora")])
def test_where_transformers_layers_run_activations_are_fused_unless_all_is_to_be_plain(
    name: str, method: str, config_file: Make, base: Make
) -> None:
    options = ("lora: {target_modules: all-linear}", f"method: {method}")
    losses = []
    for kernels, expected in (("auto", 2), ("plain", 0)):
        path = config_file(*options, f"train: {{kernels: {kernels}}}", model=base(name))
        session = assemble(loader.load(path))
        assert sum(isinstance(one, Fused) for one in session.model.modules()) == expected
        session.model.eval()
        [batch], _ = next(session.windows(DataState(0, 0)))
        losses.append(session.loss(batch)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_run_says_which_layers_compute(config_file: Make, base: Make, capsys: Capture) -> None:
    for sections in ((), ("lora: {dropout: 0.05}",)):
        assert train(config_file(*sections), "--overwrite") == 0
        assert "layers   loractl's own" in capsys.readouterr().err
    assert (
        train(config_file("lora: {target_modules: [c_attn]}", model=base("gpt2")), "--overwrite")
        == 0
    )
    said = capsys.readouterr().err
    assert "layers   those of transformers (no fast layers for GPT2Model)" in said
