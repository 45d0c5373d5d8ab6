"""Merged models against base + adapter, against PEFT's merge and against plain arithmetic."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from loractl.artifacts.model import merge as merged
from loractl.artifacts.peft.adapter import read
from loractl.models.load import load_model, load_tokenizer, locate
from tests.artifacts.model.conftest import (
    LOW,
    Logits,
    Make,
    assert_close,
    merge,
    tensors,
    tree,
    with_adapter,
)

ARCHITECTURES = [
    "llama", "llama-tied", "mistral", "qwen3", "gemma3", "phi3", "opt", "gpt-neox", "gpt2",
]  # fmt: skip

# PEFT asks transformers for a name that is going away; nothing to do with merging.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_base_plus_adapter_and_pefts_merge_answer_alike(
    architecture: str,
    base: Make,
    adapter_dir: Make,
    peft_model: Callable[..., Any],
    logits: Logits,
    tmp_path: Path,
) -> None:
    where = base(architecture)
    directory = adapter_dir(where)
    before = tree(where)
    merge(where, directory, tmp_path / "out")
    expected = logits(with_adapter(where, directory))
    assert_close(logits(tmp_path / "out"), expected)
    assert_close(logits(peft_model(where, directory).merge_and_unload()), expected)
    assert float((expected - logits(where)).abs().max()) > 0.1
    assert tree(where) == before, "the base was written to"


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "phi3"])
def test_what_has_no_adapter_is_copied_bit_for_bit(
    architecture: str, base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base(architecture, "bfloat16")
    merge(where, adapter_dir(where, target_modules="attention"), tmp_path / "out")
    old, new = tensors(where), tensors(tmp_path / "out")
    assert old.keys() == new.keys()
    for name, tensor in new.items():
        assert tensor.dtype == torch.bfloat16
        touched = ".attn." in name or "self_attn" in name
        if not touched or name.endswith("bias"):
            assert torch.equal(tensor.view(torch.int16), old[name].view(torch.int16)), name
        else:
            assert not torch.equal(tensor, old[name]), name


def assert_one_rounding(found: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """At most 1e-4 of the elements differ from the exact ones rounded, each by one step.

    These lie where the nearest float32 is the very middle between two neighbours.
    """
    off = total = 0
    for name, tensor in found.items():
        # Neighbours among floats of one sign are neighbours as integers too.
        ours, theirs = (x.contiguous().view(torch.int16) for x in (tensor, exact[name]))
        differing = ours != theirs
        assert int((ours.int() - theirs.int()).abs().max()) <= 1, name
        off, total = off + int(differing.sum()), total + tensor.numel()
    assert off <= max(1, total // 10_000)


@LOW
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("of", ["float32", "same"])
def test_a_low_precision_merge_is_the_float32_merge_rounded_once(
    of: str,
    architecture: str,
    dtype: torch.dtype,
    base: Make,
    adapter_dir: Make,
    peft_model: Callable[..., Any],
    tmp_path: Path,
) -> None:
    own = str(dtype).removeprefix("torch.")
    where = base(architecture, own if of == "same" else "float32")
    directory = adapter_dir(where)
    merge(where, directory, tmp_path / "low", dtype=None if of == "same" else dtype)
    merge(where, directory, tmp_path / "full", dtype=torch.float32)
    low, full = tensors(tmp_path / "low"), tensors(tmp_path / "full")
    assert low.keys() == full.keys()
    for name, tensor in low.items():
        assert tensor.dtype == dtype and full[name].dtype == torch.float32
        assert torch.equal(tensor, full[name].to(dtype)), name

    adapter = read(directory)
    exact = {name: tensor.double() for name, tensor in tensors(where).items()}
    for key, A in adapter.tensors.items():
        if key.endswith("lora_A.weight"):
            B = adapter.tensors[key.replace("lora_A", "lora_B")]
            delta = 6 / 4 * (B.double() @ A.double())
            name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            exact[name] += delta.T if architecture == "gpt2" else delta
    assert_one_rounding(low, {name: tensor.to(dtype) for name, tensor in exact.items()})

    # PEFT multiplies in float32, so its own last bit is open: the sums are compared, not the bits.
    theirs = peft_model(where, directory).merge_and_unload().state_dict()
    for name, tensor in full.items():
        torch.testing.assert_close(tensor, theirs[name].float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("targets", [["c_attn", "c_fc"], ["embedding"], ["head", "c_proj"]])
def test_a_base_whose_tensor_names_lack_the_prefix_is_merged(
    targets: list[str], base: Make, adapter_dir: Make, logits: Logits, tmp_path: Path
) -> None:
    where = tmp_path / "bare"
    GPT2LMHeadModel.from_pretrained(base("gpt2")).transformer.save_pretrained(where)
    assert "h.0.attn.c_attn.weight" in tensors(where)
    directory = adapter_dir(where, target_modules=targets)
    merge(where, directory, tmp_path / "out")
    assert "h.0.attn.c_attn.weight" in tensors(tmp_path / "out")
    assert_close(logits(tmp_path / "out"), logits(with_adapter(where, directory)))


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
@pytest.mark.parametrize("targets", ["all-linear", ["embedding"], ["head", "q_proj"]])
def test_a_gguf_base_is_merged_into_a_plain_directory(
    architecture: str,
    targets: str | list[str],
    gguf_base: Make,
    adapter_dir: Make,
    logits: Logits,
    tmp_path: Path,
) -> None:
    where = gguf_base(architecture)
    directory = adapter_dir(where, target_modules=targets)
    before = tree(where.parent)
    written = merge(where, directory, tmp_path / "out", dtype=torch.float32)
    untied = architecture == "llama-tied" and targets != "all-linear"
    assert written == merged.Written(untied, torch.float32)
    assert_close(logits(tmp_path / "out"), logits(with_adapter(where, directory)))
    assert tree(where.parent) == before
    source = locate(str(tmp_path / "out"))
    plain, merged_tokenizer = load_tokenizer(locate(str(where))), load_tokenizer(source)
    text = "What is 12 plus 7? <|im_end|>"
    assert merged_tokenizer(text).input_ids == plain(text).input_ids
    assert merged_tokenizer.chat_template == plain.chat_template


def test_a_gguf_base_becomes_bfloat16_unless_told_otherwise(
    gguf_base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = gguf_base("llama")
    written = merge(where, adapter_dir(where), tmp_path / "out")
    assert written.dtype == torch.bfloat16
    assert {t.dtype for t in tensors(tmp_path / "out").values()} == {torch.bfloat16}


@LOW
def test_a_model_trained_whole_is_rounded_once_and_loads(
    dtype: torch.dtype, base: Make, tmp_path: Path
) -> None:
    source = locate(str(base("llama")))
    model = load_model(source, dtype=torch.float32, device=torch.device("cpu"))
    expected = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    merged.write_model_(
        tmp_path, model, load_tokenizer(source), dtype=dtype, about={"method": "full"}, ends=[]
    )
    found = tensors(tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert json.loads((tmp_path / "loractl.json").read_text()) == {"method": "full"}
    again = load_model(locate(str(tmp_path)), dtype=dtype, device=torch.device("cpu"))
    assert again.dtype == dtype and load_tokenizer(locate(str(tmp_path))).chat_template
