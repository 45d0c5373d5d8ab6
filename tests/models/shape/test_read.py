"""Shapes read from config.json alone, against the models that transformers builds from it."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from loractl.errors import ModelError
from loractl.lora.dense import MatrixSize, dense_weight_of, matrix_sizes
from loractl.lora.inject import adaptable, module_of, sizes_of
from loractl.models.forward import check_isolation
from loractl.models.load import head_name
from loractl.models.segments.install import use_segments_
from loractl.models.shape import read as shapes
from loractl.models.shape.families import FAMILIES, UNPACKABLE
from loractl.models.shape.sizes import SIZES

D: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
WIDE = {**D, "head_dim": 16}  # head_dim apart from hidden / heads
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
OPT = {
    "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "vocab_size": 100, "max_position_embeddings": 64, "word_embed_proj_dim": 32,
}  # fmt: skip
FALCON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 100,
          "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", D),
    "llama with biases": ("llama", {**D, "attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {**D, "tie_word_embeddings": True}),
    "llama, heads of their own width": ("llama", WIDE),
    "mistral": ("mistral", D),
    "qwen2": ("qwen2", D),
    "qwen3": ("qwen3", WIDE),
    "gemma": ("gemma", WIDE),
    "gemma2": ("gemma2", WIDE),
    "gemma3": ("gemma3_text", WIDE),
    "granite": ("granite", D),
    "smollm3": ("smollm3", D),
    "olmo2": ("olmo2", D),
    "phi": ("phi", D),
    "phi3": ("phi3", D),
    "starcoder2": ("starcoder2", D),
    "stablelm": ("stablelm", {**D, "use_qkv_bias": True}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64,
                      "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neox": ("gpt_neox", D),
    "opt": ("opt", OPT),
    "opt, narrow embedding": ("opt", {**OPT, "word_embed_proj_dim": 16,
                                      "do_layer_norm_before": False}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 100}),
    "falcon": ("falcon", FALCON),
    "falcon, new": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mixtral": ("mixtral", {**D, "num_local_experts": 4}),
    "qwen2_moe": ("qwen2_moe", {**D, **MOE, "shared_expert_intermediate_size": 40}),
    "qwen3_moe, one dense block": ("qwen3_moe", {**WIDE, **MOE, "mlp_only_layers": [1]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_shape_is_that_of_the_model_which_transformers_builds(case: str, tmp_path: Path) -> None:
    architecture, settings = CASES[case]
    config = AutoConfig.for_model(architecture, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    found = shapes.read(tmp_path)
    kinds = adaptable(model)
    assert list(found.kinds.items()) == list(kinds.items())
    assert found.head == head_name(model)
    for path, kind in kinds.items():
        weight = dense_weight_of(*module_of(model, path, kind))
        one = found.by_path[path]
        assert (one.d_in, one.d_out) == matrix_sizes(kind, weight)
        assert MatrixSize(one.d_in, one.d_out, one.stack) == sizes_of(model, {path: kind})[path]
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.tied == model.config.tie_word_embeddings


@pytest.mark.parametrize("case", CASES)
def test_the_architectures_that_cannot_be_packed_are_those_that_training_refuses(
    case: str,
) -> None:
    architecture, settings = CASES[case]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings)).eval()
    with torch.no_grad():  # the default start is near zero, which would hide what is seen
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    use_segments_(model)
    refused = pytest.raises(ModelError, match=r"data\.packing")
    with refused if architecture in UNPACKABLE else contextlib.nullcontext():
        check_isolation(model)


def test_every_family_is_compared_with_transformers_or_with_its_published_count() -> None:
    compared = {architecture for architecture, _ in CASES.values()}
    assert FAMILIES.keys() - compared == {"qwen"}  # not in transformers; counted below


def test_qwen_1_has_the_parameters_that_its_card_counts() -> None:
    config = {
        "model_type": "qwen", "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 151936,
        "num_attention_heads": 32, "intermediate_size": 22016, "kv_channels": 128,
    }  # fmt: skip
    assert shapes.from_config(config, where="Qwen-7B").parameters == 7_721_324_544


@pytest.mark.parametrize(
    ("size", "parameters"),
    # As the checkpoints on the hub hold them; LLaMA 33B (arXiv 2302.13971, table 2: 32.5B)
    [("0.5B", 494_032_768), ("1B", 1_235_814_400), ("1.5B", 1_543_714_304), ("3B", 3_085_938_688),
     ("4B", 4_022_468_096), ("7B", 6_738_415_616), ("8B", 8_030_261_248), ("13B", 13_015_864_320),
     ("14B", 14_770_033_664), ("30B", 32_528_943_616), ("32B", 32_763_876_352),
     ("70B", 68_976_648_192), ("72B", 72_706_203_648)],
)  # fmt: skip
def test_a_size_has_the_parameters_of_the_model_it_stands_for(size: str, parameters: int) -> None:
    assert shapes.named(size).parameters == parameters


def test_the_sizes_are_listed_from_small_to_large() -> None:
    counts = [shapes.named(size).parameters for size in SIZES]
    assert counts == sorted(counts)


def write(tmp_path: Path, **settings: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(settings), "utf-8")
    return tmp_path


def test_an_architecture_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model_type mamba: its shape cannot be derived"):
        shapes.read(write(tmp_path, model_type="mamba", hidden_size=8))


@pytest.mark.parametrize("value", [None, 0, -1, "8", True, 1.5])
def test_a_size_that_is_missing_or_wrong_is_named_and_not_guessed(
    value: object, tmp_path: Path
) -> None:
    settings = {k: v for k, v in {**D, "hidden_size": value}.items() if v is not None}
    with pytest.raises(ModelError, match="hidden_size: found .*, expected a positive integer"):
        shapes.read(write(tmp_path, model_type="llama", **settings))


def test_heads_of_their_own_width_must_be_told_where_no_rule_gives_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="head_dim: found nothing"):
        shapes.read(write(tmp_path, model_type="qwen3", **D))


def test_a_directory_without_a_readable_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not found; a base model has a config.json"):
        shapes.read(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="expected a JSON object with model_type"):
        shapes.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        shapes.read(tmp_path)


def test_shapes_need_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from loractl.models.shape import read; read.named('70B');"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
