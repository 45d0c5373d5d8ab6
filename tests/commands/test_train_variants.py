"""Runs of the LoRA family from config to merged model: resumed bit for bit, read by PEFT alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import attach
from loractl.cli.main import main
from loractl.models import load
from tests.sweeps import sampled

Make = Callable[..., Path]
Logits = Callable[..., Tensor]
Capture = pytest.CaptureFixture[str]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]
EMBEDDING = "lora: {target_modules: [q_proj, down_proj, embed_tokens]}"
RUNS: dict[str, tuple[str, list[str]]] = {
    "lora-plus": ("llama", ["train: {lora_plus_ratio: 16, learning_rate: 1e-3}"]),
    "dora": ("llama", ["method: dora", "train: {lora_plus_ratio: 4, weight_decay: 0.1}"]),
    "dora-dropout": ("llama-tied", ["method: dora", "lora: {dropout: 0.2}", EMBEDDING]),
    "dora-conv1d": ("gpt2", ["method: dora", "lora: {target_modules: [c_attn, c_proj, wte]}"]),
    "pissa": ("llama", ["lora: {init: pissa, dropout: 0.2}", EMBEDDING]),
    "pissa-conv1d": ("gpt2", ["lora: {init: pissa, scaling: rslora, rank_pattern: {c_fc: 2}}"]),
    "olora": ("qwen3", ["lora: {init: olora, alpha: 3, alpha_pattern: {q_proj: 5}}"]),
    "adalora": (
        "llama",
        [
            "method: adalora",
            "lora: {rank: 8, dropout: 0.1, scaling: rslora}",
            "lora: {adalora: {initial_rank: 4, target_rank: 2, warmup_steps: 1, final_steps: 1,"
            " every: 1}}",
        ],
    ),
    "adalora-embedding": (
        "gpt2",
        [
            "method: adalora",
            "lora: {rank: 8, target_modules: [c_attn, wte]}",
            "lora: {adalora: {initial_rank: 3, target_rank: 1, warmup_steps: 0, final_steps: 2,"
            " every: 1, orthogonality: 0.0}}",
            "train: {learning_rate: 3e-2}",
        ],
    ),
    "grows": ("llama", ["lora: {rank: 2, rank_schedule: {1: 5}, scaling: rslora}", EMBEDDING]),
    "shrinks": ("gpt2", ["lora: {rank: 6, rank_schedule: {2: 3, 3: 2}, dropout: 0.1}"]),
    "dora-grows-and-shrinks": ("qwen3", ["method: dora", "lora: {rank_schedule: {1: 6, 3: 2}}"]),
    "frozen-below": ("llama", ["lora: {layers: [1]}"]),
    "frozen-below-adalora": (
        "qwen3",
        [
            "method: adalora",
            "lora: {rank: 8, layers: [1]}",
            "lora: {adalora: {initial_rank: 4, target_rank: 2, warmup_steps: 1, final_steps: 1,"
            " every: 1}}",
        ],
    ),
    "whole-norms": ("llama", ["lora: {modules_to_save: [norm, input_layernorm]}"]),
    "whole-head": ("llama-tied", ["lora: {modules_to_save: [lm_head], target_modules: minimal}"]),
    "whole-table": ("gpt2", ["lora: {modules_to_save: [wte, wpe], target_modules: minimal}"]),
    "whole-mlp": (
        "gemma3",
        ["method: dora", "lora: {modules_to_save: [layers.1.mlp], target_modules: attention}"],
    ),
    "experts": ("mixtral", ["lora: {rank: 2, dropout: 0.1, scaling: rslora}"]),
    "experts-pissa": ("mixtral", ["lora: {rank: 2, init: pissa, target_modules: [down_proj]}"]),
    "experts-whole": (
        "mixtral",
        ["lora: {modules_to_save: [gate], target_modules: [down_proj, gate_up_proj]}"],
    ),
    "dora-pissa": ("gemma3", ["method: dora", "lora: {init: pissa, scaling: rslora}"]),
}


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest difference over max(1, max |logit|)."""
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def with_adapter(base: Path, directory: Path) -> Any:
    source = load.locate(str(base))
    model = load.load_model(source, dtype=torch.float32, device=torch.device("cpu"))
    attach.load_(model, adapters.read(directory))
    return model


SAMPLE = (
    "lora-plus", "dora-dropout", "pissa-conv1d", "olora", "adalora-embedding", "shrinks",
    "frozen-below-adalora", "whole-norms", "whole-mlp", "experts",
)  # fmt: skip


@pytest.mark.parametrize("name", sampled(RUNS, *SAMPLE))
def test_a_run_is_resumed_bit_for_bit_and_every_reader_agrees_on_it(
    name: str, base: Make, config_file: Make, logits: Logits, peft_model: Any, tmp_path: Path
) -> None:
    architecture, sections = RUNS[name]
    where = base(architecture)
    before = {path.name: path.read_bytes() for path in where.iterdir()}
    steps = "train: {steps: 4, save_every: 2, batch_size: 2}"
    config = config_file(steps, *sections, model=where)
    assert main(["train", str(config)]) == 0
    run, again = tmp_path / "run", tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "adapter")
    shutil.rmtree(again / "checkpoints" / "step-000004")
    assert main(["train", str(config), "--out", str(again), "--resume"]) == 0
    last = Path("checkpoints") / "step-000004"
    for file in ("adapter_model.safetensors", "optimizer.safetensors"):
        assert (run / last / file).read_bytes() == (again / last / file).read_bytes(), file
    final = run / "adapter" / adapters.WEIGHTS
    assert final.read_bytes() == (again / "adapter" / adapters.WEIGHTS).read_bytes()

    expected = logits(with_adapter(where, run))
    assert worst(expected, logits(where)) > 1e-3, "training moved nothing"
    assert worst(logits(with_adapter(where, run / last)), expected) < 1e-5
    assert worst(logits(peft_model(where, run / "adapter")), expected) < 1e-5
    for number, path in enumerate((run, run / last)):
        assert main(["merge", str(path), "--out", str(tmp_path / f"merged-{number}")]) == 0
        assert worst(logits(tmp_path / f"merged-{number}"), expected) < 1e-5
    assert {path.name: path.read_bytes() for path in where.iterdir()} == before


@pytest.mark.parametrize("name", ["dora", "pissa", "dora-pissa"])
def test_base_plus_adapter_and_the_merged_model_say_the_same(
    name: str, base: Make, config_file: Make, tmp_path: Path, capsys: Capture
) -> None:
    architecture, sections = RUNS[name]
    assert main(["train", str(config_file(*sections, model=base(architecture)))]) == 0
    run, out = str(tmp_path / "run"), str(tmp_path / "merged")
    assert main(["merge", run, "--out", out]) == 0
    capsys.readouterr()
    ask = ["generate", "--prompt", "What is 2?", "--max-new-tokens", "8", "--dtype", "float32"]
    answers = []
    for options in (["--adapter", f"a={run}"], ["--model", out]):
        assert main([*ask, *options]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_published_adapter_is_twice_as_wide_and_a_checkpoint_is_not(
    init: str, base: Make, config_file: Make, tmp_path: Path
) -> None:
    config = config_file(f"lora: {{init: {init}, rank: 4, alpha: 6, scaling: rslora}}")
    assert main(["train", str(config)]) == 0
    run = tmp_path / "run"
    saved = run / "checkpoints" / "step-000004"
    wide, narrow = (
        json.loads((path / "adapter_config.json").read_text()) for path in (run / "adapter", saved)
    )
    assert (narrow["r"], narrow["lora_alpha"], narrow["init_lora_weights"]) == (4, 6, init)
    assert (wide["r"], wide["init_lora_weights"]) == (8, True)
    assert wide["lora_alpha"] / 8**0.5 == pytest.approx(6 / 4**0.5, rel=1e-12)
    tensors = load_file(run / "adapter" / adapters.WEIGHTS)
    assert {min(t.shape) for t in tensors.values()} == {8}
    trained = load_file(saved / adapters.WEIGHTS)
    assert {min(t.shape) for t in trained.values()} == {4} and len(trained) == 2 * len(tensors)


def test_a_start_wider_than_its_weight_is_refused_by_key_and_module(
    base: Make, config_file: Make, capsys: Capture, tmp_path: Path
) -> None:
    assert main(["train", str(config_file("lora: {init: pissa, rank: 20}"))]) == 2
    error = capsys.readouterr().err
    assert "lora.init" in error and "layers.0.self_attn.k_proj has a lower rank than 20" in error
    assert not (tmp_path / "run").exists()


def test_adapters_as_large_as_their_weights_are_told_of(config_file: Make, capsys: Capture) -> None:
    config = str(config_file("train: {steps: 1}"))
    assert main(["train", config, "--set", "lora.rank=10", "--overwrite"]) == 0
    assert "at least as many values" not in capsys.readouterr().err
    assert main(["train", config, "--set", "lora.rank=11", "--overwrite"]) == 0
    error = capsys.readouterr().err
    assert "4 adapters have at least as many values as their weights, the first: model" in error
    assert "k_proj at rank 11, where only ranks below 10.67 save any; lower lora.rank" in error


@pytest.mark.parametrize("name", ["dora", "pissa", "olora"])
def test_a_half_precision_base_is_merged_to_its_exact_sum_rounded_once(
    name: str, base: Make, config_file: Make, tmp_path: Path, capsys: Capture
) -> None:
    """PiSSA's usual trap: a residual base in bfloat16 no longer adds up to the weight."""
    architecture, sections = RUNS[name]
    where = base(architecture, "bfloat16")
    model = f"model: {{name_or_path: {where}, dtype: bfloat16}}"
    assert main(["train", str(config_file(*sections, model))]) == 0
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert "proven" in capsys.readouterr().err
