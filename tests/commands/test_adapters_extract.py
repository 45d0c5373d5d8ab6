"""`loractl adapters extract`: a merged model's adapter is found again, a tuned one's measured."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loractl.artifacts.peft.adapter import read
from loractl.artifacts.peft.updates import updates
from loractl.cli.main import main
from loractl.lora.inject import adapters
from tests.commands.adapter_files import assert_close, assert_equal_products, ours, products
from tests.commands.conftest import assert_refused, said

Make = Callable[..., Path]
Logits = Callable[..., Tensor]
Captured = pytest.CaptureFixture[str]

pytestmark = [
    # PEFT asks transformers for a name that is going away; nothing to do with adapters.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # What PEFT says whenever one of two tied layers is adapted.
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]


def extract(base: Path, tuned: Path, out: Path, *flags: str) -> int:
    command = ["adapters", "extract", "--base", str(base), "--tuned", str(tuned)]
    return main([*command, "--out", str(out), *flags])


@pytest.fixture
def merged(tmp_path: Path, capsys: Captured) -> Callable[..., Path]:
    def make(directory: Path, *flags: str) -> Path:
        out = tmp_path / "merged"
        assert main(["merge", str(directory), "--out", str(out), "--no-verify", *flags]) == 0
        capsys.readouterr()
        return out

    return make


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "gemma3", "opt", "phi3"])
def test_the_adapter_of_a_merged_model_is_found_again(
    architecture: str,
    base: Make,
    adapter_dir: Make,
    merged: Callable[..., Path],
    peft_model: Callable[..., Any],
    logits: Logits,
    capsys: Captured,
    tmp_path: Path,
) -> None:
    where = base(architecture)
    directory = adapter_dir(where, rank=3)
    tuned, out = merged(directory), tmp_path / "out"
    assert extract(where, tuned, out, "--rank", "3", "--json") == 0
    report = said(capsys)
    assert_equal_products(products(out), products(directory))
    assert all(module["kept_energy"] > 1 - 1e-8 for module in report["modules"].values())
    assert report["not_expressed"] == {} and report["kept_energy"] > 1 - 1e-8
    assert_close(logits(peft_model(where, out)), logits(tuned))
    assert extract(where, tuned, tmp_path / "energy", "--energy", "0.99999") == 0
    assert {update.factors.rank for update in updates(read(tmp_path / "energy")).values()} == {3}


def test_tables_are_taken_in_when_asked_for_and_told_of_otherwise(
    base: Make,
    adapter_dir: Make,
    merged: Callable[..., Path],
    logits: Logits,
    capsys: Captured,
    tmp_path: Path,
) -> None:
    where = base("llama-tied")
    directory = adapter_dir(where, target_modules=["embedding", "q_proj"])
    tuned, out = merged(directory), tmp_path / "out"  # its head is untied, and the old table
    assert extract(where, tuned, out, "--rank", "4", "--json") == 0
    report = said(capsys)
    assert list(report["not_expressed"]) == ["model.embed_tokens.weight"]
    assert report["not_expressed"]["model.embed_tokens.weight"]["relative_change"] > 0.1
    assert 0 < report["kept_energy"] < 0.99 and report["kept_energy_of_modules"] > 1 - 1e-8
    assert extract(where, tuned, out, "--rank", "4", "--embeddings", "--overwrite") == 0
    assert_equal_products(products(out), products(directory))
    assert_close(logits(ours(where, out)), logits(tuned))


def tune(where: Path, out: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    shutil.copytree(where, out)
    path = out / "model.safetensors"
    tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return out


def moved(name: str, tensor: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return tensor + 0.01 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def test_a_table_that_is_also_the_head_gives_both_their_updates(
    base: Make, logits: Logits, capsys: Captured, tmp_path: Path
) -> None:
    where, out = base("llama-tied"), tmp_path / "out"
    tuned = tune(where, tmp_path / "tuned", lambda n, t: moved(n, t) if "embed" in n else t)
    assert extract(where, tuned, out, "--rank", "32", "--embeddings") == 0
    assert "lm_head is adapted" in capsys.readouterr().err
    assert sorted(updates(read(out))) == ["lm_head", "model.embed_tokens"]
    assert_close(logits(ours(where, out)), logits(tuned))


def test_what_training_of_all_weights_changed_is_measured_layer_by_layer(
    base: Make, logits: Logits, capsys: Captured, tmp_path: Path
) -> None:
    where, out = base("llama"), tmp_path / "out"
    tuned = tune(where, tmp_path / "tuned", moved)
    assert extract(where, tuned, out, "--rank", "4", "--json") == 0
    report = said(capsys)
    assert "lm_head" in report["modules"] and len(report["modules"]) == 15
    assert sorted(report["not_expressed"])[:2] == [
        "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
    ]  # fmt: skip
    before, after = load_file(where / "model.safetensors"), load_file(tuned / "model.safetensors")
    for name, module in report["modules"].items():
        delta = (after[f"{name}.weight"] - before[f"{name}.weight"]).double()
        S = torch.linalg.svdvals(delta)
        shares = S.square().cumsum(0) / S.square().sum()
        assert module["kept_energy"] == pytest.approx(float(shares[3]), abs=1e-6)
        assert module["rank_90"] == int((shares < 0.9).sum()) + 1
        change = float(delta.norm() / before[f"{name}.weight"].double().norm())
        assert module["relative_change"] == pytest.approx(change, rel=1e-6)
    (tmp_path / "run").mkdir()
    tuned.rename(tmp_path / "run" / "model")  # as a run of method: full leaves it
    assert extract(where, tmp_path / "run", tmp_path / "most", "--energy", "0.9") == 0
    text = capsys.readouterr()
    assert "rank for 90%" in text.out and "not expressed" in text.out
    assert "A and B have as many values as the weight" in text.err
    assert len(adapters(ours(where, tmp_path / "most"))) == 15


def test_models_that_cannot_be_compared_are_refused_by_what_differs(
    base: Make, gguf_base: Make, capsys: Captured, tmp_path: Path
) -> None:
    where, out = base("llama"), tmp_path / "out"
    quantized = tune(where, tmp_path / "quantized", lambda n, t: t)
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (quantized / "config.json").write_text(json.dumps(config))
    broken = tune(where, tmp_path / "broken", lambda n, t: t * torch.nan if "norm" in n else t)
    short = tune(where, tmp_path / "short", moved)
    data = (short / "model.safetensors").read_bytes()
    (short / "model.safetensors").write_bytes(data[:-100])
    cases = {
        base("gpt2"): ["model_type is gpt2, expected llama"],
        gguf_base("llama"): [".gguf", "safetensors"],
        quantized: ["quantized"],
        broken: ["norm.weight", "not finite"],
        short: ["truncated or corrupt"],
        where: ["no tensor differs"],
        tmp_path / "absent": ["absent", "no such directory"],
    }
    for tuned, words in cases.items():
        assert extract(where, tuned, out, "--rank", "2") == 2, tuned
        assert_refused(capsys, *words)
        assert not out.exists()


def test_shapes_that_differ_are_told_by_name(
    base: Make, capsys: Captured, tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(base("llama"))
    config.intermediate_size = 64
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    assert extract(base("llama"), tmp_path / "wide", tmp_path / "out", "--rank", "2") == 2
    assert_refused(capsys, "mlp.down_proj.weight is [32, 64], expected [32, 48]")


def test_a_model_of_another_dtype_is_compared_with_a_note(
    base: Make, adapter_dir: Make, merged: Callable[..., Path], capsys: Captured, tmp_path: Path
) -> None:
    tuned = merged(adapter_dir(base("llama")), "--dtype", "bfloat16")
    assert extract(base("llama"), tuned, tmp_path / "out", "--rank", "4", "--json") == 0
    out, err = capsys.readouterr()
    assert "float32 -> bfloat16" in err and "rounding" in err
    assert 0.99 < json.loads(out)["kept_energy_of_modules"] < 1 - 1e-9
