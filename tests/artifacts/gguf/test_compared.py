"""Tensors of a GGUF file are compared strip by strip: right ones pass, each wrong one is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from torch import Tensor, nn

from loractl.artifacts.gguf.compared import Compared
from loractl.lora import dense
from loractl.lora.inject import FORMULAS
from loractl.lora.layer import LoraLayer

ROWS, WIDTH = 96, 64
ORDER = torch.arange(ROWS).flip(0)


class Plain:
    """A layout that renames, and changes what the names say."""

    def name_of(self, name: str) -> str:
        return f"blk.{name}"

    def row_order(self, name: str, rows: int) -> Tensor | None:
        return ORDER if name.startswith("turned") else None

    def shift(self, name: str) -> float:
        return 1.0 if name.endswith("norm.weight") else 0.0


@pytest.fixture(autouse=True)
def _short_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "STRIP", 10 * WIDTH)


def compared(path: Path, kind: str, **tensors: Tensor) -> Compared:
    writer, to = GGUFWriter(path, "llama"), GGMLQuantizationType[kind.upper()]
    for name, tensor in tensors.items():
        data = quants.quantize(tensor.detach().float().contiguous().numpy(), to)
        writer.add_tensor(f"blk.{name.replace('_', '.')}", data, raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Compared(path, Plain())  # type: ignore[arg-type]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


KINDS = pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])


@KINDS
def test_a_plain_tensor_is_right_and_one_value_of_its_last_strip_is_not(
    kind: str, tmp_path: Path
) -> None:
    W = drawn(ROWS, WIDTH)
    found = compared(tmp_path / "a", kind, a_weight=W, turned_weight=W[ORDER])
    found.plain("a.weight", W.split(30))
    found.plain("turned.weight", [W])
    assert found.wrong == []
    wrong = W.clone()
    wrong[-1, -1] += 0.1
    found.plain("a.weight", [wrong])
    found.plain("turned.weight", [wrong])
    found.plain("b.weight", [W])  # is not there
    found.plain("a.weight", [W[:-1]])
    found.trained("a.weight", W[:30])
    assert found.wrong == ["a.weight", "turned.weight", "b.weight", "a.weight", "a.weight"]


def test_a_shifted_vector_is_right(tmp_path: Path) -> None:
    w = drawn(ROWS)
    found = compared(tmp_path / "a", "f32", norm_weight=w + 1)
    found.plain("norm.weight", [w])
    assert found.wrong == []
    found.plain("norm.weight", [w + 1])
    assert found.wrong == ["norm.weight"]


def layer_of(kind: str) -> LoraLayer:
    torch.manual_seed(0)
    base: Any = nn.Linear(WIDTH, ROWS) if kind == "linear" else nn.Embedding(ROWS, WIDTH)
    d_in, d_out = (WIDTH, ROWS) if kind == "linear" else (ROWS, WIDTH)
    return FORMULAS["lora"][kind](base, drawn(4, d_in), drawn(d_out, 4), scale=0.5)


@KINDS
@pytest.mark.parametrize("layer_kind", ["linear", "embedding"])
def test_an_adapted_weight_is_right_and_one_without_its_update_is_not(
    layer_kind: str, kind: str, tmp_path: Path
) -> None:
    layer = layer_of(layer_kind)
    W, base = layer.merged_weight(), layer.dense_weight()
    found = compared(tmp_path / "a", kind, a_weight=W, b_weight=base, c_weight=W[:-1])
    found.adapted("a", layer)
    assert found.wrong == []
    for name in ("b", "c", "d"):
        found.adapted(name, layer)
    assert found.wrong == ["b.weight", "c.weight", "d.weight"]


@KINDS
def test_rows_of_an_adapted_weight_are_in_their_order(kind: str, tmp_path: Path) -> None:
    layer = layer_of("linear")
    W = layer.merged_weight()
    found = compared(tmp_path / "a", kind, turned_weight=W[ORDER])
    found.adapted("turned", layer)
    assert found.wrong == []
    found = compared(tmp_path / "b", kind, turned_weight=W)
    found.adapted("turned", layer)
    assert found.wrong == ["turned.weight"]


def test_without_a_file_nothing_is_compared() -> None:
    found = Compared(None, Plain())  # type: ignore[arg-type]
    found.plain("a.weight", [drawn(ROWS, WIDTH)])
    found.adapted("b", layer_of("linear"))
    assert found.wrong == []
