"""What PEFT 0.21 writes beside plain LoRA is read alike: AdaLoRA, whole modules, experts.

The rest of matching, and of its refusals, is in test_adapter.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from loractl.artifacts.peft.adapter import CONFIG, WEIGHTS, read
from loractl.artifacts.peft.attach import load_, ranks_of
from loractl.errors import ArtifactError
from loractl.lora.inject import merge_
from loractl.lora.whole import wholes

Make = Callable[..., Path]
Logits = Callable[..., Tensor]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
]
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "head": ("llama", {"modules_to_save": ["lm_head"]}),
    "tied-head": ("llama-tied", {"modules_to_save": ["lm_head"]}),
    "tied-table": ("llama-tied", {"modules_to_save": ["embed_tokens"]}),
    "any-norm": ("qwen3", {"modules_to_save": ["norm"]}),  # PEFT takes every ...norm
    "mlp-dora": ("llama", {"modules_to_save": ["mlp"], "use_dora": True}),
    "biases": ("gpt-neox", {"modules_to_save": ["dense"], "target_modules": ["query_key_value"]}),
    "router": ("mixtral", {"modules_to_save": ["mlp.gate"]}),
    "experts": ("mixtral", {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    "one-of-the-experts": ("mixtral", {"target_parameters": ["0.mlp.experts.down_proj"]}),
    "experts-rslora": (
        "mixtral",
        {"target_parameters": ["down_proj"], "use_rslora": True, "rank_pattern": {"down_proj": 2}},
    ),
}


def plain(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def write_peft(base: Path, directory: Path, config: LoraConfig) -> Any:
    """An adapter of random values as PEFT writes it; return the model that it was written from."""
    model = get_peft_model(plain(base), config)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return model.eval()


def worst(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", SETTINGS)
def test_whole_modules_and_experts_of_pefts_adapters_are_read(
    name: str, base: Make, tmp_path: Path, logits: Logits
) -> None:
    architecture, settings = SETTINGS[name]
    where = base(architecture)
    options = {"target_modules": ["q_proj"], "r": 3, "lora_alpha": 5, **settings}
    write_peft(where, tmp_path / "peft", LoraConfig(task_type="CAUSAL_LM", **options))
    # What PEFT reads back, not what it held: with experts it drops the update of eval mode
    from peft import PeftModel

    expected = logits(PeftModel.from_pretrained(plain(where), tmp_path / "peft").eval())
    model = plain(where)
    load_(model, read(tmp_path / "peft"))
    assert worst(logits(model), expected) < 1e-5
    assert worst(expected, logits(where)) > 1e-3
    merge_(model)
    assert worst(logits(model), expected) < 1e-5


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT saves a module of rank 0, and warns
@pytest.mark.parametrize("steps", [2, 10])
def test_pefts_adalora_is_read_before_and_after_its_ranks_are_chosen(
    steps: int, base: Make, tmp_path: Path, logits: Logits
) -> None:
    where = base("llama")
    phases = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2, "total_step": 10}
    config = AdaLoraConfig(
        target_modules=["q_proj", "down_proj"], lora_alpha=5, task_type="CAUSAL_LM", **phases
    )
    model = get_peft_model(plain(where), config)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(1, steps + 1):
        ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, labels=ids).loss.backward()
        adam.step()
        model.base_model.update_and_allocate(step)
        adam.zero_grad()
    expected = logits(model.eval())
    model.save_pretrained(tmp_path / "peft")
    ours = plain(where)
    layers = load_(ours, read(tmp_path / "peft"))
    assert worst(logits(ours), expected) < 1e-5
    assert worst(expected, logits(where)) > 1e-3
    assert sum(layer.rank for layer in layers.values()) == (16 if steps == 2 else 8)


def broken(directory: Path, edit: Callable[[dict[str, Tensor]], None]) -> Path:
    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("base_model.model.lm_head.weight"), "1 tensors are missing: .*lm_head"),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(3, 32)}),
            r"lm_head.weight has shape \[3, 32\], expected \[340, 32\]",
        ),
        (
            lambda t: t.update({"base_model.model.lm_head.bias": torch.zeros(3)}),
            "unexpected: base_model.model.lm_head.bias",
        ),
    ],
)
def test_a_whole_module_that_does_not_fit_is_refused_by_tensor(
    change: Callable[[dict[str, Tensor]], None], message: str, base: Make, tmp_path: Path
) -> None:
    where = base("llama")
    config = LoraConfig(
        task_type="CAUSAL_LM", r=3, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    write_peft(where, tmp_path / "peft", config)
    model = plain(where)
    before = list(dict(model.named_modules()))
    with pytest.raises(ArtifactError, match=message):
        load_(model, read(broken(tmp_path / "peft", change)))
    assert list(dict(model.named_modules())) == before and not wholes(model)


ADALORA = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1, "total_step": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(next(n for n in t if n.endswith(".lora_A"))), "lacks one of lora_A"),
        (
            lambda t: t.update({n: torch.ones(9, 1) for n in t if n.endswith(".lora_E")}),
            "A, B and E have shapes .* k at most init_r \\(4\\)",
        ),
        (
            lambda t: [t.pop(n) for n in list(t)] and t.update(x=torch.ones(1)),
            "no module with lora_A",
        ),
    ],
)
def test_a_damaged_adalora_is_refused_by_module(
    change: Callable[[dict[str, Tensor]], None], message: str, base: Make, tmp_path: Path
) -> None:
    config = AdaLoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **ADALORA)
    write_peft(base("llama"), tmp_path / "peft", config)
    with pytest.raises(ArtifactError, match=message):
        read(broken(tmp_path / "peft", change))


@pytest.mark.parametrize(
    ("field", "value"), [("init_r", 0), ("init_r", "4"), ("lora_alpha", -1), ("lora_alpha", None)]
)
def test_a_wrong_field_of_an_adalora_config_is_named(
    field: str, value: object, base: Make, tmp_path: Path
) -> None:
    config = AdaLoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **ADALORA)
    write_peft(base("llama"), tmp_path / "peft", config)
    path = tmp_path / "peft" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ArtifactError, match=f"{CONFIG}: {field} is "):
        read(tmp_path / "peft")


def test_experts_that_the_config_does_not_name_are_unexpected(base: Make, tmp_path: Path) -> None:
    where = base("mixtral")
    config = LoraConfig(task_type="CAUSAL_LM", r=3, target_parameters=["down_proj"])
    write_peft(where, tmp_path / "peft", config)
    path = tmp_path / "peft" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_parameters": None}))
    with pytest.raises(ArtifactError, match="unexpected: .*experts.lora_A.weight"):
        ranks_of(read(tmp_path / "peft"), plain(where))
