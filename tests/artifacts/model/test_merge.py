"""Merged models against base + adapter, against PEFT's merge and against plain arithmetic."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from loractl.artifacts.model import merge as merged
from loractl.artifacts.peft.adapter import TEMPLATE, WEIGHTS, read
from loractl.artifacts.peft.attach import load_
from loractl.errors import ArtifactError
from loractl.models.load import load_model, load_tokenizer, locate

Make = Callable[..., Path]
Logits = Callable[..., Tensor]
ARCHITECTURES = [
    "llama", "llama-tied", "mistral", "qwen3", "gemma3", "phi3", "opt", "gpt-neox", "gpt2",
]  # fmt: skip
MODEL = "model.safetensors"
LOW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])

# PEFT asks transformers for a name that is going away; nothing to do with merging.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def merge(base: Path, adapter: Path, out: Path, dtype: torch.dtype | None = None) -> merged.Written:
    out.mkdir()
    return merged.write(out, locate(str(base)), read(adapter), dtype=dtype)


def with_adapter(base: Path, adapter: Path) -> Any:
    """base + adapter in float32."""
    model = load_model(locate(str(base)), dtype=torch.float32, device=torch.device("cpu"))
    load_(model, read(adapter))
    return model


def tensors(directory: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for path in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def tree(directory: Path) -> dict[str, str]:
    """Hash and mode of every file."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        + oct(path.stat().st_mode)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def assert_close(found: Tensor, expected: Tensor) -> None:
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= bound


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


def resave(base: Path, directory: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a base whose tensors are changed."""
    shutil.copytree(base, directory)
    content = load_file(directory / MODEL)
    change(content)
    save_file(content, directory / MODEL, metadata={"format": "pt"})
    return directory


def test_shards_stay_as_they_are(
    base: Make, adapter_dir: Make, logits: Logits, tmp_path: Path
) -> None:
    where = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(base("llama"), dtype=torch.float32)
    model.save_pretrained(where, max_shard_size="20KB")
    names = sorted(path.name for path in where.glob("*.safetensors"))
    assert len(names) > 3
    directory = adapter_dir(where)
    merge(where, directory, tmp_path / "out", dtype=torch.bfloat16)
    merge(where, directory, tmp_path / "full")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == names
    for name in names:
        assert load_file(tmp_path / "out" / name).keys() == load_file(where / name).keys()
    old, new = (json.loads((d / merged.INDEX).read_text()) for d in (where, tmp_path / "out"))
    assert new["weight_map"] == old["weight_map"]
    size = sum(t.numel() * t.element_size() for t in tensors(tmp_path / "out").values())
    assert new["metadata"]["total_size"] == size
    assert_close(logits(tmp_path / "full"), logits(with_adapter(where, directory)))


def test_a_shard_that_the_index_names_and_that_is_gone_is_named(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(base("llama"), dtype=torch.float32)
    model.save_pretrained(where, max_shard_size="20KB")
    directory = adapter_dir(where)
    gone = sorted(where.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ArtifactError, match=f"lists {gone.name}, which does not exist"):
        merge(where, directory, tmp_path / "out")


TIED_TARGETS = [["head"], ["embedding"], ["embedding", "head"]]


@pytest.mark.parametrize("architecture", ["llama-tied", "gemma3", "gpt2", "opt"])
@pytest.mark.parametrize("targets", TIED_TARGETS)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_tied_head_is_untied_when_it_or_the_embedding_is_adapted(
    architecture: str,
    targets: list[str],
    sharded: bool,
    base: Make,
    adapter_dir: Make,
    logits: Logits,
    tmp_path: Path,
) -> None:
    where = base(architecture)
    if sharded:
        where = tmp_path / "sharded"
        model = AutoModelForCausalLM.from_pretrained(base(architecture))
        model.save_pretrained(where, max_shard_size="20KB")
    directory = adapter_dir(where, target_modules=targets)
    written = merge(where, directory, tmp_path / "out")
    assert written.untied
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert len(tensors(tmp_path / "out")) == len(tensors(where)) + 1
    assert_close(logits(tmp_path / "out"), logits(with_adapter(where, directory)))


@pytest.mark.parametrize("targets", TIED_TARGETS)
def test_a_tied_head_whose_files_hold_it_twice_is_untied_too(
    targets: list[str], base: Make, adapter_dir: Make, logits: Logits, tmp_path: Path
) -> None:
    where = resave(
        base("llama-tied"),
        tmp_path / "twice",
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
    )
    directory = adapter_dir(where, target_modules=targets)
    assert merge(where, directory, tmp_path / "out").untied
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert tensors(tmp_path / "out").keys() == tensors(where).keys()
    assert_close(logits(tmp_path / "out"), logits(with_adapter(where, directory)))


def test_a_tied_head_stays_tied_when_neither_is_adapted(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base("llama-tied")
    assert not merge(where, adapter_dir(where), tmp_path / "out").untied
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in tensors(tmp_path / "out")


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


def test_the_merged_directory_stands_alone(
    base: Make, adapter_dir: Make, peft_model: Callable[..., Any], tmp_path: Path
) -> None:
    where = tmp_path / "base"
    shutil.copytree(base("llama"), where)
    (where / "notes.md").write_text("not a model file")
    directory = adapter_dir(where, size=0.3)
    merge(where, directory, tmp_path / "out")
    prompt = [{"role": "user", "content": "What is 12 plus 7?"}]
    texts = []
    for model, tokens in (
        (peft_model(where, directory), where),
        (AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True), None),
    ):
        tokenizer = AutoTokenizer.from_pretrained(tokens or tmp_path / "out", local_files_only=True)
        ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        found = model.generate(**ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
        texts.append(found.tolist())
    assert texts[0] == texts[1]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in where.iterdir()} - {"notes.md"}
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (where / name).read_bytes()


@pytest.mark.parametrize("inside", [False, True])
def test_the_adapters_chat_template_wins(
    inside: bool, base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = tmp_path / "base"
    shutil.copytree(base("llama"), where)
    if inside:  # as older bases have it
        (where / TEMPLATE).unlink()
        config = json.loads((where / "tokenizer_config.json").read_text())
        config["chat_template"] = "the base's"
        (where / "tokenizer_config.json").write_text(json.dumps(config))
    directory = adapter_dir(where)
    template = "{{ messages[0].content }}\r\nthe adapter's ä"
    (directory / TEMPLATE).write_bytes(template.encode())
    merge(where, directory, tmp_path / "out")
    assert (tmp_path / "out" / TEMPLATE).read_bytes() == template.encode()
    found = load_tokenizer(locate(str(tmp_path / "out"))).chat_template
    assert isinstance(found, str) and "the adapter's" in found


def test_a_base_without_dtype_in_its_config_keeps_that_of_its_tensors(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = tmp_path / "base"
    shutil.copytree(base("llama", "bfloat16"), where)
    config = json.loads((where / "config.json").read_text())
    del config["dtype"]
    (where / "config.json").write_text(json.dumps(config))
    assert merged.own_dtype(locate(str(where))) == torch.bfloat16
    merge(where, adapter_dir(where), tmp_path / "out")
    assert {t.dtype for t in tensors(tmp_path / "out").values()} == {torch.bfloat16}


def test_tensors_of_other_dtypes_keep_theirs(base: Make, adapter_dir: Make, tmp_path: Path) -> None:
    def mix(content: dict[str, Tensor]) -> None:
        content["model.norm.weight"] = content["model.norm.weight"].float()
        content["counter"] = torch.tensor([3])

    where = resave(base("llama", "bfloat16"), tmp_path / "mixed", mix)
    directory = adapter_dir(where)
    merge(where, directory, tmp_path / "own")
    own = tensors(tmp_path / "own")
    assert own["model.norm.weight"].dtype == torch.float32 and own["counter"].dtype == torch.int64
    merge(where, directory, tmp_path / "half", dtype=torch.float16)
    half = tensors(tmp_path / "half")
    assert half["model.norm.weight"].dtype == torch.float16 and half["counter"].item() == 3
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["dtype"] == "float16" and "torch_dtype" not in config


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_a_weight_beyond_float16_is_refused(
    name: str, base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = resave(base("llama"), tmp_path / "large", lambda t: t[name].view(-1)[0].fill_(1e5))
    directory = adapter_dir(where)
    with pytest.raises(ArtifactError, match=f"{name}: the merged weight is not finite in float16"):
        merge(where, directory, tmp_path / "out", dtype=torch.float16)


def test_a_quantized_base_is_refused(base: Make, adapter_dir: Make, tmp_path: Path) -> None:
    where = tmp_path / "base"
    shutil.copytree(base("llama"), where)
    directory = adapter_dir(where)
    config = json.loads((where / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (where / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"the base is quantized \(gptq\)"):
        merge(where, directory, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
def test_an_adapter_that_brings_a_changed_embedding_is_refused(base: Make, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("llama"))
    wrapped = get_peft_model(model, LoraConfig(target_modules=["embed_tokens", "q_proj"]))
    wrapped.save_pretrained(tmp_path / "peft")
    merge(base("llama"), tmp_path / "peft", tmp_path / "fits")
    content = load_file(tmp_path / "peft" / WEIGHTS)
    content["base_model.model.model.embed_tokens.base_layer.weight"][0, 0] += 1
    save_file(content, tmp_path / "peft" / WEIGHTS)
    with pytest.raises(ArtifactError, match="differs from the base's own weight"):
        merge(base("llama"), tmp_path / "peft", tmp_path / "out")


def test_another_models_adapter_is_refused_before_any_weight_is_read(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    directory = adapter_dir(base("gpt2"))
    with pytest.raises(ArtifactError, match="0 of 16 tensors match"):
        merge(base("llama"), directory, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_files_have_the_mode_of_new_files(
    base: Make, adapter_dir: Make, gguf_base: Make, tmp_path: Path
) -> None:
    old = os.umask(0o027)
    try:
        merge(base("llama"), adapter_dir(base("llama"), "a"), tmp_path / "out")
        gguf = gguf_base("llama")
        merge(gguf, adapter_dir(gguf, "b"), tmp_path / "whole")
    finally:
        os.umask(old)
    for name in ("out", "whole"):
        assert (tmp_path / name / MODEL).stat().st_mode & 0o777 == 0o640


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
        tmp_path, model, load_tokenizer(source), dtype=dtype, about={"method": "full"}
    )
    found = tensors(tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert json.loads((tmp_path / "loractl.json").read_text()) == {"method": "full"}
    again = load_model(locate(str(tmp_path)), dtype=dtype, device=torch.device("cpu"))
    assert again.dtype == dtype and load_tokenizer(locate(str(tmp_path))).chat_template
