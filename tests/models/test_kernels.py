"""Compiled layers compute what plain ones do; what cannot run here is refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from loractl.cli.main import main
from loractl.errors import ModelError
from loractl.models import kernels
from tests.runs import rows_of

Make = Callable[..., Path]


def count_compiled(monkeypatch: pytest.MonkeyPatch, *, do: bool) -> list[str]:
    """What torch is asked to compile from now on; where it is not to `do` it, nothing is."""
    compiled: list[str] = []
    original = torch.nn.Module.compile

    def counted(self: torch.nn.Module, **options: object) -> None:
        compiled.append(type(self).__name__)
        if do:
            original(self, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", counted)
    return compiled


def test_the_layers_are_compiled_and_nothing_else(
    config_file: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = count_compiled(monkeypatch, do=False)
    config = config_file("train: {steps: 1, save_every: 2, kernels: compile}")
    assert main(["train", str(config)]) == 0
    assert compiled == ["LlamaDecoderLayer"] * 2
    assert len(rows_of(tmp_path / "run")) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of the tracer
def test_a_run_with_compiled_layers_learns_what_one_without_learns(
    config_file: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "BACKEND", "aot_eager")  # traced, and its code not generated
    compiled = count_compiled(monkeypatch, do=True)
    config = config_file("train: {steps: 2, save_every: 2}", "lora: {target_modules: minimal}")
    for way in ("plain", "compile"):
        options = ["--set", f"train.kernels={way}", "--out", str(tmp_path / way)]
        assert main(["train", str(config), *options]) == 0
    assert len(compiled) == 2  # layers
    plain, other = (rows_of(tmp_path / way) for way in ("plain", "compile"))
    assert [row["loss"] for row in other] == pytest.approx([r["loss"] for r in plain], rel=1e-5)


def test_a_model_without_layers_to_compile_is_refused() -> None:
    with pytest.raises(ModelError, match="finds no decoder layers in Linear"):
        kernels.compile_layers_(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_liger_is_refused_off_a_gpu_and_where_it_is_missing() -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1))
    with pytest.raises(ModelError, match=r"needs a GPU, but this run uses the cpu"):
        kernels.use_liger_(model, torch.device("cpu"))
    with pytest.raises(ModelError, match=r"pip install 'loractl\[liger\]'"):
        kernels.use_liger_(model, torch.device("cuda"))
