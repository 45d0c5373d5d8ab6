"""Base models as they are found and loaded: whole, finite, and plain even from a GGUF file."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loractl.errors import ModelError
from loractl.models.fingerprints import fingerprint
from loractl.models.load import Source, head_name, load_model, load_tokenizer, locate

Make = Callable[..., Path]
Logits = Callable[..., Tensor]
CPU = torch.device("cpu")


def edited(base: Path, directory: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    shutil.copytree(base, directory)
    content = load_file(directory / "model.safetensors")
    change(content)
    save_file(content, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_a_gguf_file_loads_as_the_model_it_was_made_from(
    architecture: str, base: Make, gguf_base: Make, logits: Logits
) -> None:
    path, origin = gguf_base(architecture), base(architecture)
    source = locate(str(path))
    model = load_model(source, dtype=torch.float32, device=CPU)
    assert torch.equal(logits(model), logits(origin))
    tokenizer, expected = load_tokenizer(source), load_tokenizer(locate(str(origin)))
    text = "What is 12 plus 7? <|im_end|>\nStraße"
    assert tokenizer(text).input_ids == expected(text).input_ids
    assert tokenizer.chat_template == expected.chat_template
    assert (tokenizer.eos_token, tokenizer.pad_token) == (expected.eos_token, expected.pad_token)


def test_a_model_from_a_gguf_file_can_be_saved_and_loaded(
    gguf_base: Make, logits: Logits, tmp_path: Path
) -> None:
    model = load_model(locate(str(gguf_base("llama"))), dtype=torch.float32, device=CPU)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(tmp_path), logits(model))


def test_what_is_no_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGML" * 10)
    source = locate(str(tmp_path / "a.gguf"))
    with pytest.raises(ModelError, match="a.gguf: the weights cannot be loaded"):
        load_model(source, dtype=torch.float32, device=CPU)
    with pytest.raises(ModelError, match="a.gguf: the tokenizer cannot be loaded"):
        load_tokenizer(source)
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="a file, expected a directory or a .gguf file"):
        locate(str(tmp_path / "a.bin"))


@pytest.mark.parametrize("kept", [0, 6, 30, 200, 0.03, 0.1, 0.3, 0.9, -1])
def test_a_truncated_gguf_file_is_refused(kept: float, gguf_base: Make, tmp_path: Path) -> None:
    content = gguf_base("llama").read_bytes()
    end = int(kept * len(content)) if isinstance(kept, float) else int(kept)
    (tmp_path / "a.gguf").write_bytes(content[:end])
    with pytest.raises(
        ModelError, match="a.gguf: the weights( cannot be loaded|: truncated or corrupt): ."
    ):
        load_model(locate(str(tmp_path / "a.gguf")), dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, base: Make, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    where = edited(base("llama"), tmp_path / "m", lambda t: t[name].view(-1)[5].fill_(value))
    with pytest.raises(ModelError, match=f"{name} holds values that are not finite in float32"):
        load_model(locate(str(where)), dtype=torch.float32, device=CPU)


def test_weights_beyond_float16_are_named(base: Make, tmp_path: Path) -> None:
    where = edited(base("llama"), tmp_path / "m", lambda t: t["model.norm.weight"][0].fill_(1e6))
    load_model(locate(str(where)), dtype=torch.bfloat16, device=CPU)
    with pytest.raises(ModelError, match="model.norm.weight holds .* not finite in float16"):
        load_model(locate(str(where)), dtype=torch.float16, device=CPU)


def test_a_missing_tensor_is_named_and_never_started_at_random(base: Make, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    where = edited(base("llama"), tmp_path / "m", lambda t: t.pop(name))
    with pytest.raises(ModelError, match=f"tensors missing from its files: 1; the first is {name}"):
        load_model(locate(str(where)), dtype=torch.float32, device=CPU)


def test_a_truncated_file_is_refused(base: Make, tmp_path: Path) -> None:
    where = tmp_path / "m"
    shutil.copytree(base("llama"), where)
    content = (where / "model.safetensors").read_bytes()
    (where / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ModelError, match="truncated or corrupt|cannot be loaded"):
        load_model(locate(str(where)), dtype=torch.float32, device=CPU)


def test_a_fingerprint_is_the_hash_of_the_hashes_of_config_and_weights(tmp_path: Path) -> None:
    content = {
        "config.json": b"{}",
        "a.safetensors": bytes(range(256)) * 40_000,
        "b.safetensors": b"",
    }
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    order = ("config.json", "a.safetensors", "b.safetensors")
    lines = "".join(f"{hashlib.sha256(content[name]).hexdigest()}\n" for name in order)
    assert fingerprint(Source("any", tmp_path)) == hashlib.sha256(lines.encode()).hexdigest()


def test_a_fingerprint_is_that_of_the_bytes_wherever_they_lie(base: Make, tmp_path: Path) -> None:
    shutil.copytree(base("llama"), tmp_path / "copy")
    assert fingerprint(locate(str(base("llama")))) == fingerprint(locate(str(tmp_path / "copy")))
    other = edited(base("llama"), tmp_path / "m", lambda t: t["model.norm.weight"][0].add_(1e-3))
    assert fingerprint(locate(str(other))) != fingerprint(locate(str(base("llama"))))
    assert fingerprint(locate(str(base("llama", seed=1)))) != fingerprint(
        locate(str(base("llama")))
    )


def test_the_head_is_found_by_its_path(base: Make) -> None:
    for architecture in ("llama", "llama-tied", "gpt-neox", "gpt2", "opt"):
        model = load_model(locate(str(base(architecture))), dtype=torch.float32, device=CPU)
        name = head_name(model)
        assert name and model.get_submodule(name) is model.get_output_embeddings()
