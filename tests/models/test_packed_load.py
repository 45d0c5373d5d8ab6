"""A base is packed while it is loaded, tensor by tensor, and what was packed is kept and read."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loractl.errors import ModelError
from loractl.models import load
from loractl.models.fingerprints import fingerprint
from loractl.models.packed_cache import Entry
from loractl.models.packed_names import quantizable
from loractl.quant.kinds import PACKERS, Quantization, kind_of
from loractl.quant.linear import packed_layers

Make = Callable[..., Path]
CPU = torch.device("cpu")
IDS = torch.arange(20)[None]


def source_of(
    directory: Path, kind: str | None, dtype: str = "float32", head: bool = False
) -> load.Source:
    chosen = Quantization(kind, dtype, head) if kind else None
    return replace(load.locate(str(directory)), quantization=chosen)


@pytest.mark.parametrize("kind", sorted(PACKERS))
@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "phi3", "mixtral", "gpt-neox"])
def test_every_linear_layer_but_the_head_has_the_numbers_that_its_packing_leaves(
    base: Make, architecture: str, kind: str
) -> None:
    source = source_of(base(architecture), kind)
    plain = load.load_model(source_of(base(architecture), None), dtype=torch.float32, device=CPU)
    packed = load.load_model(source, dtype=torch.float32, device=CPU)
    dense = load.load_model(source, dtype=torch.float32, device=CPU, dense=True)
    assert source.quantization is not None
    names = quantizable(plain, source.quantization)
    layers = packed_layers(packed)
    assert sorted(layers) == sorted(names) and not packed_layers(dense)
    for name in names:
        weight = source.quantization.rounded(plain.get_submodule(name).weight)  # type: ignore[arg-type]
        assert kind_of(layers[name].packed) == kind
        assert torch.equal(layers[name].dense_weight(), weight)
        assert torch.equal(dense.get_submodule(name).weight, weight)  # type: ignore[arg-type]
    rest = {n: t for n, t in plain.named_parameters() if n.rpartition(".")[0] not in names}
    for name, tensor in rest.items():
        assert torch.equal(packed.get_parameter(name), tensor), name
    with torch.no_grad():
        ours, theirs = (model(IDS, use_cache=False).logits for model in (packed, dense))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_it_is_a_plain_model_to_everyone_else(base: Make) -> None:
    packed = load.load_model(source_of(base(), "nf4"), dtype=torch.float32, device=CPU)
    plain = load.load_model(source_of(base(), None), dtype=torch.float32, device=CPU)
    assert not packed.training and not hasattr(packed, "hf_quantizer")
    assert not hasattr(packed.config, "quantization_config")
    assert packed.config.name_or_path == plain.config.name_or_path
    assert packed.generation_config.to_dict() == plain.generation_config.to_dict()
    assert packed.dtype == plain.dtype


def test_a_head_is_packed_if_asked_and_not_if_it_is_the_embedding(base: Make) -> None:
    source = source_of(base("llama"), "nf4", head=True)
    assert "lm_head" in packed_layers(load.load_model(source, dtype=torch.float32, device=CPU))
    tied = source_of(base("llama-tied"), "nf4", head=True)
    with pytest.raises(ModelError, match=r"shares the weight of the embedding.*quantize_head"):
        load.load_model(tied, dtype=torch.float32, device=CPU)


def test_a_model_without_plain_linear_layers_is_refused(base: Make) -> None:
    with pytest.raises(ModelError, match=r"no plain linear layers.*remove model.quantization"):
        load.load_model(source_of(base("gpt2"), "nf4"), dtype=torch.float32, device=CPU)


def test_a_weight_that_is_not_finite_is_named(base: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in base().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    source = source_of(tmp_path, "nf4-double")
    with pytest.raises(ModelError, match=name):
        load.load_model(source, dtype=torch.float32, device=CPU)
    load.load_model(source, dtype=torch.float32, device=CPU, finite=False)


def test_a_tensor_that_is_missing_or_has_another_shape_is_named(base: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in base().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(
        {n: t[:-1] if n == name else t for n, t in tensors.items()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ModelError, match=rf"the shape of {name} differs"):
        load.load_model(source_of(tmp_path, "nf4"), dtype=torch.float32, device=CPU)
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"missing from its files: 1; the first is {name}"):
        load.load_model(source_of(tmp_path, "nf4"), dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("kind", sorted(PACKERS))
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_what_was_packed_is_kept_and_read_the_next_time(
    base: Make, architecture: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path))
    source = source_of(base(architecture), kind)

    def loaded() -> torch.Tensor:
        model = load.load_model(
            source, dtype=torch.float32, device=CPU, fingerprint=lambda: fingerprint(source)
        )
        with torch.no_grad():
            return model(IDS, use_cache=False).logits  # type: ignore[no-any-return]

    first = loaded()
    (entry,) = (tmp_path / "packed").iterdir()
    monkeypatch.setattr(Quantization, "pack", lambda self, weight: pytest.fail("packed again"))
    assert torch.equal(loaded(), first)
    monkeypatch.undo()
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path))
    damaged = next(entry.glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert Entry(entry).tensors() == {}
    assert torch.equal(loaded(), first)
    assert Entry(entry).tensors()


def test_each_base_kind_and_dtype_has_an_entry_of_its_own() -> None:
    ways = [Quantization(k, d, h) for k in PACKERS for d in ("float32", "bfloat16") for h in (0, 1)]  # type: ignore[arg-type]
    assert len({Entry.of(base, way).place for base in ("a", "b") for way in ways}) == 24


def test_a_cache_that_cannot_be_written_is_no_error(
    base: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path / "file" / "below"))
    source = source_of(base(), "nf4")
    load.load_model(source, dtype=torch.float32, device=CPU, fingerprint=lambda: "f")


PEAK = """
import resource, sys, torch
from dataclasses import replace
from loractl.models import load, packer, packed_load, packed_cache
from loractl.quant.kinds import Quantization
from loractl.quant.linear import packed_layers, n_bytes
import transformers.models.llama.modeling_llama
import loractl.ops.native as native
native.compiled(torch.bfloat16)
source = replace(load.locate(sys.argv[1]), quantization=Quantization("nf4-double", "bfloat16"))
def resident():
    return int(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0]) << 10
before = resident()
cpu = torch.device("cpu")
model = load.load_model(source, dtype=torch.bfloat16, device=cpu, fingerprint=lambda: sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
size = sum(n_bytes(one.packed) for one in packed_layers(model).values())
size += sum(p.nbytes for p in {id(p): p for p in model.parameters()}.values())
print(peak - before, size)
"""


@pytest.mark.slow
def test_loading_takes_no_more_than_the_packed_model_a_tensor_and_half_a_gigabyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path / "cache"))
    from safetensors.torch import save_file

    hidden, inner, layers, vocabulary = 1024, 4096, 24, 8192
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": vocabulary, "tie_word_embeddings": True,
    }  # fmt: skip
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    shapes = {f"self_attn.{n}_proj": (hidden, hidden) for n in "qkvo"}
    shapes |= {f"mlp.{n}_proj": (inner, hidden) for n in ("gate", "up")}
    shapes["mlp.down_proj"] = (hidden, inner)
    places: dict[str, str] = {}

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, model / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))

    norm = torch.ones(hidden, dtype=torch.bfloat16)
    one = torch.randn(inner, hidden).bfloat16() * 0.02
    for layer in range(layers):
        tensors = {
            f"model.layers.{layer}.{name}.weight": one.flatten()[: a * b].view(a, b).clone()
            for name, (a, b) in shapes.items()
        }
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = norm.clone()
        save(f"model-{layer}.safetensors", tensors)
    table = torch.randn(vocabulary, hidden).bfloat16()
    save("model-ends.safetensors", {"model.embed_tokens.weight": table, "model.norm.weight": norm})
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    dense = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    for _ in range(2):  # packed, and from the cache
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(model), "fingerprint"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        taken, size = map(int, done.stdout.split())
        print(f"dense {dense >> 20} MiB, packed {size >> 20} MiB, peak {taken >> 20} MiB")
        assert taken <= size + table.nbytes + 500e6
        assert taken < dense, "the dense model is never in memory"
