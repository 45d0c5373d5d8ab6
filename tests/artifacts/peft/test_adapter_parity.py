"""Adapter files both ways with PEFT: it reads ours, we read its, and the logits are the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from loractl.artifacts.peft.adapter import WEIGHTS
from loractl.errors import ArtifactError
from tests.artifacts.peft.conftest import TIED, Logits, Make, ours, peft_saved, plain
from tests.sweeps import crossed

# PEFT asks transformers for a name that is going away; nothing to do with adapters.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
ARCHITECTURES = [
    "llama", "llama-tied", "mistral", "qwen3", "gemma3", "phi3", "opt", "gpt-neox", "gpt2",
]  # fmt: skip


def assert_same(found: Tensor, expected: Tensor, base: Tensor) -> None:
    """Equal to 1e-5 x max(1, max |logit|), and far from what the base says."""
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= bound
    assert float((expected - base).abs().max()) > 1000 * bound


CASES: dict[str, dict[str, Any]] = {
    "all-linear": {},
    "rslora": {"scaling": "rslora", "target_modules": "attention"},
    "a-block": {"layers": [1], "target_modules": "minimal"},
    "patterns": {"rank_pattern": {r".*\.1\..*": 2}, "alpha_pattern": {r".*\.0\..*": 3.5}},
}


@pytest.mark.parametrize(
    ("architecture", "case"),
    crossed(ARCHITECTURES, CASES, kept=lambda one, case: one == "llama" or case == "patterns"),
)
def test_peft_reads_ours_and_answers_alike(
    architecture: str,
    case: str,
    base: Make,
    adapter_dir: Make,
    peft_model: Callable[..., Any],
    logits: Logits,
) -> None:
    where = base(architecture)
    directory = adapter_dir(where, **CASES[case])
    expected = logits(ours(where, directory))
    assert_same(logits(peft_model(where, directory)), expected, logits(where))


@TIED
@pytest.mark.parametrize("targets", [["embedding"], ["head"], ["embedding", "head"]])
@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gemma3", "gpt2", "opt"])
def test_peft_reads_our_embeddings_and_heads_and_answers_alike(
    architecture: str,
    targets: list[str],
    base: Make,
    adapter_dir: Make,
    peft_model: Callable[..., Any],
    logits: Logits,
) -> None:
    where = base(architecture)
    directory = adapter_dir(where, target_modules=targets)
    expected = logits(ours(where, directory))
    assert_same(logits(peft_model(where, directory)), expected, logits(where))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_our_tensors_have_the_names_shapes_and_dtype_of_pefts(
    architecture: str, base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base(architecture)
    directory = adapter_dir(where, rank=3)
    config = LoraConfig(
        r=3,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=architecture == "gpt2",
    )
    get_peft_model(plain(where), config).save_pretrained(tmp_path / "peft")
    found, expected = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in load_file(path / WEIGHTS).items()}
        for path in (directory, tmp_path / "peft")
    )
    assert found == expected


@TIED
def test_our_embedding_tensors_have_the_names_and_shapes_of_pefts(
    base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"), target_modules=["embedding"], rank=3)
    model = get_peft_model(plain(base("llama")), LoraConfig(r=3, target_modules=["embed_tokens"]))
    theirs = get_peft_model_state_dict(model, save_embedding_layers=False)
    found = load_file(directory / WEIGHTS)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in theirs.items()}


THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "list": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "regex": ("llama", {"target_modules": r".*\.1\.(self_attn|mlp)\.(q|up)_proj"}),
    "all-linear": ("phi3", {"target_modules": "all-linear"}),
    "rslora": ("qwen3", {"target_modules": "all-linear", "use_rslora": True}),
    "defaults": ("llama", {}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "rank-pattern": (
        "llama",
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, "layers.1.mlp.*": 5}},
    ),
    "alpha-pattern": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "alpha_pattern": {"0.self_attn.q_proj": 3, "v_proj": 40},
            "use_rslora": True,
        },
    ),
    "gaussian": ("gpt-neox", {"target_modules": "all-linear", "init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {"target_modules": ["o_proj"], "init_lora_weights": "orthogonal"}),
    "some-layers": ("llama", {"target_modules": ["v_proj"], "layers_to_transform": [1]}),
    "excluding": ("llama", {"target_modules": "all-linear", "exclude_modules": ["q_proj"]}),
    "dropout": ("llama", {"target_modules": "all-linear", "lora_dropout": 0.3}),
}


@pytest.mark.parametrize("case", THEIRS)
def test_adapters_of_peft_are_read_and_answer_alike(
    case: str, base: Make, logits: Logits, tmp_path: Path
) -> None:
    architecture, settings = THEIRS[case]
    where = base(architecture)
    expected = peft_saved(where, tmp_path / "peft", **{"r": 4, "lora_alpha": 6, **settings})
    assert_same(logits(ours(where, tmp_path / "peft")), expected, logits(where))


@TIED
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head", "q_proj"]])
@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gemma3"])
def test_base_weights_that_peft_lays_beside_embedding_adapters_may_be_there(
    architecture: str, targets: list[str], base: Make, logits: Logits, tmp_path: Path
) -> None:
    where = base(architecture)
    expected = peft_saved(where, tmp_path / "peft", r=4, target_modules=targets)
    tensors = load_file(tmp_path / "peft" / WEIGHTS)
    (copied,) = (name for name in tensors if name.endswith(".base_layer.weight"))
    assert_same(logits(ours(where, tmp_path / "peft")), expected, logits(where))
    tensors[copied][3, 5] += 0.5
    save_file(tensors, tmp_path / "peft" / WEIGHTS)
    with pytest.raises(ArtifactError, match=f"{WEIGHTS}: {copied} differs from the base's own"):
        ours(where, tmp_path / "peft")
    rounded = {name: t.bfloat16() if name == copied else t for name, t in tensors.items()}
    rounded[copied][3, 5] = plain(where).get_input_embeddings().weight[3, 5]
    if targets == ["embed_tokens"]:  # PEFT may have held a float32 base in bfloat16
        save_file(rounded, tmp_path / "peft" / WEIGHTS)
        ours(where, tmp_path / "peft")


DORAS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {"target_modules": "all-linear", "lora_dropout": 0.1}),
    "biases": ("phi3", {"target_modules": "all-linear", "use_rslora": True}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "scaled-embedding": ("gemma3", {"target_modules": ["embed_tokens", "down_proj"]}),
}


@TIED
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
@pytest.mark.parametrize("case", DORAS)
def test_dora_adapters_of_peft_are_read_and_answer_alike(
    case: str, base: Make, logits: Logits, tmp_path: Path
) -> None:
    architecture, settings = DORAS[case]
    where = base(architecture)
    settings = {"r": 4, "lora_alpha": 6, "use_dora": True, **settings}
    expected = peft_saved(where, tmp_path / "peft", **settings)
    assert_same(logits(ours(where, tmp_path / "peft")), expected, logits(where))
