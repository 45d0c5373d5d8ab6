"""A base in a GGUF file keeps its blocks, and computes what its dequantized numbers compute."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loractl.errors import ModelError
from loractl.models import load
from loractl.models.gguf_file import read_header
from loractl.ops import gemm
from loractl.ops.ggml_blocks import TYPES
from loractl.quant.kinds import Quantization, kind_of
from loractl.quant.linear import packed_layers

CPU = torch.device("cpu")
IDS = torch.arange(20)[None]
KINDS = [kind.name for kind in TYPES.values()]
ARCHITECTURES = ["llama", "llama-tied", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
Make = Callable[..., Path]


def source_of(path: Path, kind: str | None = None, dtype: str = "float32") -> load.Source:
    chosen = Quantization(kind, dtype) if kind else None
    return replace(load.locate(str(path)), quantization=chosen)


@pytest.mark.parametrize(
    "architecture, dtype",
    [
        *((architecture, torch.float32) for architecture in ARCHITECTURES),
        ("llama", torch.bfloat16),
        ("gemma2", torch.float16),
    ],
)
def test_every_weight_is_the_one_that_transformers_makes_dense(
    in_blocks: Make, architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(in_blocks(architecture, *KINDS))
    packed = load.load_model(source, dtype=dtype, device=CPU)
    dense = load.load_model(source, dtype=dtype, device=CPU, dense=True)
    layers = packed_layers(packed)
    assert not packed_layers(dense)
    head = load.head_name(dense)
    linear = {n for n, m in dense.named_modules() if type(m) is torch.nn.Linear and n != head}
    assert layers.keys() == linear
    assert {kind_of(one.packed) for one in layers.values()} <= set(KINDS)
    assert len({kind_of(one.packed) for one in layers.values()}) > 6
    for name, layer in layers.items():
        assert torch.equal(layer.dense_weight(), dense.get_submodule(name).weight), name  # type: ignore[arg-type]
    rest = {n: t for n, t in dense.named_parameters() if n.rpartition(".")[0] not in linear}
    for name, tensor in rest.items():
        assert torch.equal(packed.get_parameter(name), tensor), name
    assert packed.config.to_dict() == dense.config.to_dict()
    if dtype == torch.float32:
        monkeypatch.setattr(gemm, "serves_here", lambda dtype: False)  # as the dense layers compute
        with torch.no_grad():
            ours, theirs = (model(IDS, use_cache=False).logits for model in (packed, dense))
        assert torch.equal(ours, theirs)


def test_files_of_plain_numbers_load_as_before(in_blocks: Make) -> None:
    source = source_of(in_blocks("qwen2", "f16", "bf16", "f32"))
    ours = load.load_model(source, dtype=torch.float32, device=CPU)
    theirs = load.load_model(source, dtype=torch.float32, device=CPU, dense=True)
    assert not packed_layers(ours)
    for name, tensor in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name), tensor), name


def test_blocks_that_are_not_known_become_dense_and_are_named(
    in_blocks: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = source_of(in_blocks("llama", "q4_0", "q6_k"))
    theirs = load.load_model(source, dtype=torch.float32, device=CPU, dense=True)
    for number, kind in TYPES.copy().items():
        if kind.name == "q6_k":
            monkeypatch.delitem(TYPES, number)
    ours = load.load_model(source, dtype=torch.float32, device=CPU)
    assert {kind_of(one.packed) for one in packed_layers(ours).values()} == {"q4_0"}
    assert "7 linear layers in q6_k are held in float32" in capsys.readouterr().err
    for name, tensor in theirs.named_parameters():
        path, _, last = name.rpartition(".")
        found = getattr(ours.get_submodule(path), last)
        assert torch.equal(found, tensor), name


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_config_packs_the_numbers_of_the_blocks_anew(in_blocks: Make, kind: str) -> None:
    """As it packs those of a dense load, without one."""
    path = in_blocks("llama-tied", "q4_k", "q8_0")
    dense = load.load_model(source_of(path), dtype=torch.float32, device=CPU, dense=True)
    source = source_of(path, kind, "bfloat16")
    layers = packed_layers(load.load_model(source, dtype=torch.float32, device=CPU))
    assert source.quantization is not None and layers
    for name, layer in layers.items():
        assert kind_of(layer.packed) == kind
        weight = source.quantization.pack(dense.get_submodule(name).weight)  # type: ignore[arg-type]
        assert torch.equal(layer.packed.codes, weight.codes)
        assert torch.equal(layer.packed.scales, weight.scales)  # type: ignore[arg-type]


def test_a_scale_that_is_no_number_is_named_with_its_weight(
    in_blocks: Make, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    data = bytearray(in_blocks("llama", "q4_0").read_bytes())
    place = next(p for p in read_header(in_blocks("llama", "q4_0")).tensors if "ffn_up" in p.name)
    data[place.offset : place.offset + 2] = b"\x00\x7c"  # an infinite float16
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.up_proj\.weight holds values"):
        load.load_model(source_of(path), dtype=torch.float32, device=CPU)
    load.load_model(source_of(path), dtype=torch.float32, device=CPU, finite=False)


def test_a_file_that_lacks_a_tensor_or_ends_early_is_refused(
    in_blocks: Make, tmp_path: Path
) -> None:
    data = in_blocks("llama", "q4_0").read_bytes()
    path = tmp_path / "model.gguf"
    for size in (2000, len(data) - 5000):
        path.write_bytes(data[:size])
        with pytest.raises(ModelError, match="truncated or corrupt|weights cannot be loaded"):
            load.load_model(source_of(path), dtype=torch.float32, device=CPU)
    path.write_bytes(data.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_no.weight"))
    with pytest.raises(ModelError, match=r"missing.*mlp\.up_proj\.weight"):
        load.load_model(source_of(path), dtype=torch.float32, device=CPU)


def test_a_base_that_is_trained_whole_is_dense(in_blocks: Make) -> None:
    model = load.load_model(
        source_of(in_blocks("llama", "q4_0")), dtype=torch.float32, device=CPU, dense=True
    )
    assert not packed_layers(model)
    assert not hasattr(model, "hf_quantizer") or not hasattr(model.config, "quantization_config")


def test_a_scaled_rotary_embedding_is_lost_and_said(
    in_blocks: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    load.load_model(source_of(in_blocks("llama-3.1", "q4_0")), dtype=torch.float32, device=CPU)
    assert "rotary embeddings are scaled" in capsys.readouterr().err
    load.load_model(source_of(in_blocks("llama", "q4_0")), dtype=torch.float32, device=CPU)
    assert "rotary" not in capsys.readouterr().err
