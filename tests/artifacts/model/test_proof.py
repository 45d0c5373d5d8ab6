"""The proof of a merge holds for right ones and fails for every wrong one we could think of."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loractl.artifacts.model import merge as merged
from loractl.artifacts.model.proof import Proof, prove
from loractl.artifacts.peft.adapter import read
from loractl.artifacts.peft.names import PREFIX
from loractl.errors import ArtifactError
from loractl.models.load import locate
from loractl.quant.kinds import PACKERS, Quantization
from tests.sweeps import sampled

Make = Callable[..., Path]
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
ORDINARY = 0.016
"""A and B this large make updates of about 1 % of the weights: what a short training makes."""
SQUARE = "model.layers.1.self_attn.q_proj"


@dataclass(frozen=True)
class Merge:
    """A merge that was written and may be tampered with before it is proven."""

    base: Path
    adapter: Path
    out: Path
    dtype: torch.dtype | None

    @classmethod
    def write(cls, base: Path, adapter: Path, out: Path, dtype: torch.dtype | None) -> "Merge":
        out.mkdir()
        written = merged.write(out, locate(str(base)), read(adapter), dtype=dtype)
        return cls(base, adapter, out, written.dtype)

    def prove(self) -> Proof:
        return prove(self.out, locate(str(self.base)), read(self.adapter), dtype=self.dtype)

    def delta(self, module: str, *, scale: float = 1.5) -> Tensor:
        tensors = read(self.adapter).tensors
        A = tensors[f"{PREFIX}{module}.lora_A.weight"]
        B = tensors[f"{PREFIX}{module}.lora_B.weight"]
        return scale * (B @ A)

    def old(self, name: str) -> Tensor:
        return load_file(self.base / "model.safetensors")[name]

    def replace(self, name: str, tensor: Tensor) -> None:
        path = self.out / "model.safetensors"
        tensors = load_file(path)
        tensors[name] = tensor.to(tensors[name].dtype).contiguous()
        save_file(tensors, path, metadata={"format": "pt"})


@DTYPES
@pytest.mark.parametrize("size", [ORDINARY, 0.15])
@pytest.mark.parametrize(
    "architecture",
    sampled(
        ["llama", "llama-tied", "qwen3", "gemma3", "phi3", "opt", "gpt-neox", "gpt2"],
        "llama", "gemma3", "gpt2",
    ),
)  # fmt: skip
def test_right_merges_are_proven(
    architecture: str,
    size: float,
    dtype: torch.dtype,
    base: Make,
    adapter_dir: Make,
    tmp_path: Path,
) -> None:
    where = base(architecture)
    proof = Merge.write(where, adapter_dir(where, size=size), tmp_path / "out", dtype).prove()
    assert proof.holds and proof.whole is None, str(proof)
    assert proof.wrong == () and str(proof).startswith("proven: logits of the merged model")
    assert proof.dtype == str(dtype).removeprefix("torch.")
    assert proof.effect > 0.01
    if dtype == torch.float32:
        logits = proof.logits
        assert logits.bound == pytest.approx(1e-5 * max(1.0, logits.largest_logit))
        assert logits.difference < logits.bound / 3 and logits.top1_agreement == 1.0


@DTYPES
@pytest.mark.parametrize("targets", [["embedding"], ["head"], ["embedding", "head", "up_proj"]])
@pytest.mark.parametrize("architecture", sampled(["llama", "llama-tied", "gemma3"], "llama-tied"))
def test_right_merges_of_embeddings_and_heads_are_proven(
    architecture: str,
    targets: list[str],
    dtype: torch.dtype,
    base: Make,
    adapter_dir: Make,
    tmp_path: Path,
) -> None:
    where = base(architecture)
    directory = adapter_dir(where, target_modules=targets)
    proof = Merge.write(where, directory, tmp_path / "out", dtype).prove()
    assert proof.holds and proof.whole is None, str(proof)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_low_precision_is_proven_in_its_own_dtype_or_another(
    dtype: str, base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base("llama", dtype)
    directory = adapter_dir(where, rank=8, alpha=64, size=0.05)
    for target, found in ((None, dtype), (torch.float32, "float32")):
        proof = Merge.write(where, directory, tmp_path / f"{target}", target).prove()
        assert proof.holds and proof.dtype == found, str(proof)


def test_a_gguf_base_is_proven(gguf_base: Make, adapter_dir: Make, tmp_path: Path) -> None:
    where = gguf_base("llama-tied")
    directory = adapter_dir(where, target_modules=["embedding", "q_proj"])
    for target in (None, torch.float32):
        proof = Merge.write(where, directory, tmp_path / f"{target}", target).prove()
        assert proof.holds and proof.whole == "its weights are in a GGUF file", str(proof)


@pytest.mark.parametrize("kind", PACKERS)
def test_a_packed_base_is_proven_and_a_weight_that_was_not_packed_is_named(
    kind: str, base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where, other = base("llama"), "model.layers.0.mlp.up_proj.weight"
    source = replace(locate(str(where)), quantization=Quantization(kind, "bfloat16"))
    adapter = read(adapter_dir(where, target_modules=["q_proj"]))
    merge = Merge(where, adapter.directory, tmp_path / "out", torch.bfloat16)
    merge.out.mkdir()
    merged.write(merge.out, source, adapter, dtype=None)
    proof = prove(merge.out, source, adapter, dtype=torch.bfloat16)
    assert proof.holds and proof.whole is None, str(proof)
    merge.replace(other, merge.old(other))
    assert prove(merge.out, source, adapter, dtype=torch.bfloat16).wrong == (other,)


def left_out(merge: Merge) -> None:
    merge.replace(f"{SQUARE}.weight", merge.old(f"{SQUARE}.weight"))


def scaled(merge: Merge) -> None:
    merge.replace(f"{SQUARE}.weight", merge.old(f"{SQUARE}.weight") + 1.1 * merge.delta(SQUARE))


def transposed(merge: Merge) -> None:
    merge.replace(f"{SQUARE}.weight", merge.old(f"{SQUARE}.weight") + merge.delta(SQUARE).T)


def subtracted(merge: Merge) -> None:
    merge.replace(f"{SQUARE}.weight", merge.old(f"{SQUARE}.weight") - merge.delta(SQUARE))


def swapped(merge: Merge) -> None:
    other = SQUARE.replace("layers.1", "layers.0")
    merge.replace(f"{SQUARE}.weight", merge.old(f"{SQUARE}.weight") + merge.delta(other))


TAMPERED: dict[str, Callable[[Merge], None]] = {
    "left-out": left_out,
    "scaled": scaled,
    "transposed": transposed,
    "subtracted": subtracted,
    "swapped": swapped,
}


@DTYPES
@pytest.mark.parametrize("fault", TAMPERED)
def test_one_module_merged_wrongly_is_found_and_named(
    fault: str, dtype: torch.dtype, base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base("llama")
    merge = Merge.write(where, adapter_dir(where, size=ORDINARY), tmp_path / "out", dtype)
    size = merge.delta(SQUARE).norm() / merge.old(f"{SQUARE}.weight").norm()
    assert 0.005 < size < 0.02, "no update of ordinary size"
    TAMPERED[fault](merge)
    proof = merge.prove()
    assert not proof.holds
    assert proof.wrong == (f"{SQUARE}.weight",)
    assert str(proof).startswith("FAILED") and str(proof).endswith(f"wrong: {SQUARE}.weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_weight_rounded_twice_is_found(
    dtype: torch.dtype, base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base("llama")
    merge = Merge.write(where, adapter_dir(where, size=ORDINARY), tmp_path / "out", dtype)
    name = f"{SQUARE}.weight"
    merge.replace(name, merge.old(name).to(dtype) + merge.delta(SQUARE).to(dtype))
    assert merge.prove().wrong == (name,)


def test_a_conv1d_and_an_embedding_left_out_are_found_in_bfloat16(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base("gpt2", "bfloat16")
    directory = adapter_dir(where, target_modules=["embedding", "c_attn"], size=ORDINARY)
    names = ("transformer.h.0.attn.c_attn.weight", "transformer.wte.weight")
    for name in names:
        merge = Merge.write(where, directory, tmp_path / name, None)
        merge.replace(name, merge.old(name))
        assert merge.prove().wrong == (name,)


@DTYPES
@pytest.mark.parametrize(
    "name", ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"]
)
def test_a_tensor_without_adapter_that_changed_in_one_value_is_found(
    name: str, dtype: torch.dtype, base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base("llama")
    merge = Merge.write(where, adapter_dir(where), tmp_path / "out", dtype)
    changed = load_file(merge.out / "model.safetensors")[name]
    changed.view(-1)[7] *= 1.01
    merge.replace(name, changed)
    proof = merge.prove()
    assert not proof.holds and proof.wrong == (name,)


def test_a_tied_head_that_took_part_in_the_update_is_found(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base("llama-tied")
    directory = adapter_dir(where, target_modules=["embedding"])
    merge = Merge.write(where, directory, tmp_path / "out", None)
    tensors = load_file(merge.out / "model.safetensors")
    merge.replace("lm_head.weight", tensors["model.embed_tokens.weight"])
    assert merge.prove().wrong == ("lm_head.weight",)


def test_an_adapter_whose_update_is_zero_is_refused(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"), size=0.0)
    merge = Merge.write(base("llama"), directory, tmp_path / "out", None)
    with pytest.raises(ArtifactError, match="the adapter changes nothing: its update is zero"):
        merge.prove()


def test_it_is_said_when_rounding_drowns_the_adapter(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base("llama")
    directory = adapter_dir(where, size=0.003)
    low = Merge.write(where, directory, tmp_path / "low", torch.bfloat16).prove()
    full = Merge.write(where, directory, tmp_path / "full", torch.float32).prove()
    assert low.holds and low.drowned
    assert full.holds and not full.drowned


def test_the_proof_is_the_same_every_time(base: Make, adapter_dir: Make, tmp_path: Path) -> None:
    where = base("llama")
    merge = Merge.write(where, adapter_dir(where), tmp_path / "out", torch.bfloat16)
    first: Any = merge.prove()
    torch.manual_seed(99)
    assert merge.prove() == first


def write_trained(base: Path, directory: Path, settings: dict[str, Any]) -> Path:
    """An adapter of random values with whole modules or experts, as PEFT writes it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=3, **settings))
    torch.manual_seed(5)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(directory)
    return directory


WHOLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "norm": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["model.norm"]},
        "model.norm.weight",
    ),
    "tied-head": (
        "llama-tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "lm_head.weight",
    ),
    "experts": (
        "mixtral",
        {"target_parameters": ["gate_up_proj", "down_proj"]},
        "model.layers.1.block_sparse_moe.experts.2.w2.weight",
    ),
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
@DTYPES
@pytest.mark.parametrize("name", WHOLE)
def test_whole_modules_and_experts_are_proven_and_one_wrong_tensor_of_them_is_named(
    name: str, dtype: torch.dtype, base: Make, tmp_path: Path
) -> None:
    architecture, settings, tensor = WHOLE[name]
    where = base(architecture)
    adapter = write_trained(where, tmp_path / "adapter", settings)
    merge = Merge.write(where, adapter, tmp_path / "out", dtype)
    proof = merge.prove()
    assert proof.holds and proof.wrong == () and proof.whole is None, str(proof)
    good = load_file(merge.out / "model.safetensors")[tensor]
    wrong = good.clone()
    wrong.view(-1)[0] = wrong.view(-1)[0] * 1.25 + 0.25
    merge.replace(tensor, wrong)
    found = merge.prove().wrong
    assert len(found) == 1 and found[0].endswith(("norm.weight", "lm_head.weight", "down_proj"))
