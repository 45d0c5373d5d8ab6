"""The directory of a merged model: its shards, dtypes and other files, and what is refused."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer

from loractl.artifacts.model import merge as merged
from loractl.artifacts.peft.adapter import TEMPLATE, WEIGHTS
from loractl.errors import ArtifactError
from loractl.models.load import load_tokenizer, locate
from tests.artifacts.model.conftest import (
    MODEL,
    Logits,
    Make,
    assert_close,
    merge,
    resave,
    tensors,
    with_adapter,
)

# PEFT asks transformers for a name that is going away; nothing to do with merging.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


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
    config["quantization_config"] = {"quant_method": "fp8"}
    (where / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"the base is quantized \(fp8\)"):
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
