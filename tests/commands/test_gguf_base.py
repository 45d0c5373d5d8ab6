"""A GGUF file as a base, from a run to a merged model: the losses are those of dense weights, and
llama.cpp applies the adapter to that very file."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader

from loractl.cli.main import main
from loractl.models import gguf_base
from loractl.ops import gemm
from tests.commands.conftest import Capture, Config, assert_refused
from tests.runs import timeless, train

Make = Callable[..., Path]
KINDS = ("q4_1", "q6_k", "q4_k", "q8_0")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def run(command: str, *words: str | Path) -> int:
    return main([command, *map(str, words)])


@pytest.mark.native
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_losses_and_weights_are_those_of_the_dense_base_bit_for_bit(
    architecture: str, in_blocks: Make, config_file: Config, capsys: Capture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(gemm, "serves_here", lambda dtype: True)
    config = config_file(model=in_blocks(architecture, *KINDS))
    assert train(config, "--out", str(tmp_path / "blocks")) == 0
    assert "14 linear layers in q4_1 and q4_k and q6_k and q8_0" in capsys.readouterr().err
    monkeypatch.setattr(gguf_base, "with_blocks", lambda path: None)
    assert train(config, "--out", str(tmp_path / "dense")) == 0
    assert "linear layers in" not in capsys.readouterr().err
    assert timeless(tmp_path / "blocks") == timeless(tmp_path / "dense")
    one, other = (
        (tmp_path / name / "adapter/adapter_model.safetensors").read_bytes()
        for name in ("blocks", "dense")
    )
    assert one == other


def test_a_run_is_checked_trained_used_and_merged(
    in_blocks: Make, config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    config = config_file(model=in_blocks("llama-tied", *KINDS))
    assert run("check", config) == 0
    assert "linear layers in q4_1" in capsys.readouterr().out
    assert train(config) == 0
    assert run("generate", tmp_path / "run", "--prompt", "What is 2 plus 2?") == 0
    assert run("eval", tmp_path / "run", "--data", tmp_path / "train.jsonl") == 0
    assert run("merge", tmp_path / "run", "--out", tmp_path / "merged") == 0
    assert "proven" in capsys.readouterr().err
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_an_adapter_is_proven_over_the_very_file(
    name: str, in_blocks: Make, adapter_dir: Make, capsys: Capture, tmp_path: Path
) -> None:
    base, out = in_blocks(name, *KINDS), tmp_path / "a.gguf"
    assert run("export", adapter_dir(base, size=0.01), "--to", "gguf", "--out", out) == 0
    err = capsys.readouterr().err
    assert "proven: logits in llama.cpp (f32)" in err
    assert "proven: logits in llama.cpp over model.gguf itself" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "adapter"]


def test_an_adapter_that_goes_wrong_over_the_file_alone_fails(
    in_blocks: Make, adapter_dir: Make, capsys: Capture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from loractl.artifacts.gguf import llamacpp

    base, right = in_blocks("llama", *KINDS), llamacpp.ask

    def ask(model: Path, **options: object) -> llamacpp.Answer:
        if model.name == base.name:
            options["adapter"] = None  # the adapter is not applied
        return right(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(llamacpp, "ask", ask)
    out = tmp_path / "a.gguf"
    assert run("export", adapter_dir(base, size=0.15), "--to", "gguf", "--out", out) == 4
    assert_refused(capsys, "FAILED", "over model.gguf itself", "nothing was kept")
    assert not out.exists()


@pytest.mark.parametrize("dtype", ["f32", "q8_0", "q4_k_m"])
def test_it_is_merged_into_another_gguf_file(
    dtype: str, in_blocks: Make, adapter_dir: Make, capsys: Capture, tmp_path: Path
) -> None:
    base, out = in_blocks("llama-tied", *KINDS), tmp_path / "m.gguf"
    adapter = adapter_dir(base, size=0.05)
    flags = ("--to", "merged-gguf", "--out", out, "--dtype", dtype)
    assert run("export", adapter, *flags) == 0
    assert f"proven: logits in llama.cpp ({dtype})" in capsys.readouterr().err
    kinds = {t.tensor_type.name.lower() for t in GGUFReader(out).tensors if len(t.shape) > 1}
    assert kinds == ({"q4_k", "q6_k"} if dtype == "q4_k_m" else {dtype})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "m.gguf"]


def test_the_file_itself_is_not_written_over(
    in_blocks: Make, adapter_dir: Make, capsys: Capture
) -> None:
    base = in_blocks("llama", *KINDS)
    flags = ("--to", "merged-gguf", "--out", base, "--overwrite")
    assert run("export", adapter_dir(base), *flags) == 2
    assert_refused(capsys, "would replace")


def test_a_layer_in_blocks_cannot_be_trained_whole(
    in_blocks: Make, config_file: Config, capsys: Capture
) -> None:
    config = config_file(
        "lora: {modules_to_save: [down_proj], target_modules: [q_proj]}",
        model=in_blocks("llama", *KINDS),
    )
    assert train(config) == 2
    assert_refused(capsys, "is quantized and cannot be trained", "a base that is not quantized")


def test_all_weights_are_trained_from_the_dense_numbers(
    in_blocks: Make, config_file: Config, tmp_path: Path
) -> None:
    config = config_file("method: full", model=in_blocks("llama", *KINDS))
    assert train(config) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
