"""Directories that bitsandbytes quantized: written as it does, and read with the same numbers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from loractl.artifacts.model import quantized
from loractl.errors import ModelError
from loractl.models import load
from loractl.quant.kinds import PACKERS, Quantization
from loractl.quant.linear import packed_layers

Make = Callable[..., Path]
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def theirs(base: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """theirs("nf4") -> the base as transformers and bitsandbytes quantize and save it."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes judges the files")
    made: dict[str, Path] = {}

    def make(kind: str, **options: Any) -> Path:
        key = kind + str(options)
        if key not in made:
            asked = BitsAndBytesConfig(
                load_in_8bit=kind == "int8",
                load_in_4bit=kind != "int8",
                **{
                    "bnb_4bit_quant_type": "nf4",
                    "bnb_4bit_use_double_quant": kind == "nf4-double",
                    **options,
                },
            )
            model = AutoModelForCausalLM.from_pretrained(
                base(), quantization_config=asked, dtype=torch.float32, device_map="cpu"
            )
            made[key] = tmp_path_factory.mktemp("theirs")
            model.save_pretrained(made[key])
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (made[key] / name).write_bytes((base() / name).read_bytes())
        return made[key]

    return make


def numbers_of(model: Any) -> dict[str, torch.Tensor]:
    """The dense weight of each layer that bitsandbytes has packed."""
    import bitsandbytes as bnb

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            found[name] = bnb.functional.dequantize_4bit(module.weight.data, state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
            found[name] = bnb.functional.int8_vectorwise_dequant(module.weight.data, scales)
    return found


@pytest.mark.parametrize("kind", sorted(PACKERS))
def test_their_directory_is_read_as_it_is_and_equals_ours_of_the_same_base(
    theirs: Callable[[str], Path], base: Make, kind: str
) -> None:
    source = load.locate(str(theirs(kind)))
    model = load.load_model(source, dtype=torch.float32, device=CPU)
    own = replace(load.locate(str(base())), quantization=Quantization(kind, "float32"))
    ours = packed_layers(load.load_model(own, dtype=torch.float32, device=CPU))
    found = packed_layers(model)
    assert sorted(found) == sorted(ours)
    for name, layer in found.items():
        assert torch.equal(layer.packed.codes, ours[name].packed.codes), name
        assert torch.equal(layer.dense_weight(), ours[name].dense_weight()), name
    dense = load.load_model(source, dtype=torch.float32, device=CPU, dense=True)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        one, other = (m(ids, use_cache=False).logits for m in (model, dense))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(PACKERS))
def test_our_directory_is_read_by_transformers_with_the_same_numbers(
    base: Make, tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes judges the files")
    source = replace(load.locate(str(base())), quantization=Quantization(kind, "float32"))
    quantized.write(tmp_path, source)
    ours = packed_layers(load.load_model(source, dtype=torch.float32, device=CPU))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, device_map="cpu")
    found = numbers_of(model)
    assert sorted(found) == sorted(ours)
    for name, dense in found.items():
        assert torch.equal(dense, ours[name].dense_weight()), name
    again = load.load_model(load.locate(str(tmp_path)), dtype=torch.float32, device=CPU)
    for name, layer in packed_layers(again).items():
        assert torch.equal(layer.dense_weight(), ours[name].dense_weight()), name


@pytest.mark.parametrize(
    ("options", "words"), [({"bnb_4bit_quant_type": "fp4"}, "4-bit weights in fp4, expected nf4")]
)
def test_what_is_not_read_is_named(
    theirs: Callable[..., Path], options: dict[str, Any], words: str
) -> None:
    source = load.locate(str(theirs("nf4", **options)))
    with pytest.raises(ModelError, match=words):
        load.load_model(source, dtype=torch.float32, device=CPU)


def test_another_kind_than_that_of_the_files_is_refused(theirs: Callable[[str], Path]) -> None:
    source = load.locate(str(theirs("nf4")))
    asked = replace(source, quantization=Quantization("int8", "float32"))
    with pytest.raises(ModelError, match=r"quantized as nf4, and model.quantization is int8"):
        load.load_model(asked, dtype=torch.float32, device=CPU)


def test_a_method_that_cannot_be_unpacked_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}'
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"quantized with gptq.*the base it was quantized from"):
        load.locate(str(tmp_path))
