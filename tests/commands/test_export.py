"""`loractl export`, judged by llama.cpp and PEFT: what it writes and proves."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from torch import Tensor

from loractl.artifacts.gguf import llamacpp
from loractl.artifacts.gguf import vocabulary as gguf_vocabulary
from loractl.artifacts.gguf import write as gguf
from loractl.artifacts.gguf.layout import Layout
from loractl.artifacts.gguf.write import Piece
from loractl.cli.main import main
from tests.commands.conftest import assert_refused
from tests.ggufbases import BASES
from tests.sweeps import sampled

Make = Callable[..., Path]
Captured = pytest.CaptureFixture[str]
SIZE = 0.05  # of A and B
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def export(adapter: Path, to: str, out: Path, *flags: str) -> int:
    return main(["export", str(adapter), "--to", to, "--out", str(out), *flags])


@pytest.mark.parametrize("name", sampled(BASES, "llama", "qwen3", "gemma2", "phi3"))
def test_an_adapter_of_every_kind_of_model_is_proven_in_llama_cpp(
    name: str, wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    assert export(adapter_dir(wide(name), size=SIZE), "gguf", tmp_path / "a.gguf") == 0
    said = capsys.readouterr()
    assert "proven: logits in llama.cpp (f32)" in said.err
    assert "same token ids in 4 of 4 texts" in said.err
    assert said.out == f"{tmp_path / 'a.gguf'}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "adapter"]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", sampled(["llama-tied", "gemma2"], "llama-tied"))
def test_a_merged_model_is_proven_in_every_dtype(
    name: str, dtype: str, wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    assert export(adapter_dir(wide(name), size=SIZE), "merged-gguf", out, "--dtype", dtype) == 0
    assert f"proven: logits in llama.cpp ({dtype})" in capsys.readouterr().err
    kinds = {t.tensor_type.name.lower() for t in GGUFReader(out).tensors if len(t.shape) > 1}
    assert kinds == {dtype}


def test_llama_cpp_itself_makes_four_bits_of_a_proven_model(
    wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    adapter = adapter_dir(wide("llama"), size=SIZE)
    assert export(adapter, "merged-gguf", out, "--dtype", "q4_k_m") == 0
    err = capsys.readouterr().err
    assert "proven: logits in llama.cpp (f32)" in err
    assert "proven: logits in llama.cpp (q4_k_m)" in err
    kinds = {t.tensor_type.name for t in GGUFReader(out).tensors if len(t.shape) > 1}
    assert kinds == {"Q5_0", "Q8_0"}  # in place of Q4_K and Q6_K: rows are no blocks of 256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "m.gguf"]


@pytest.mark.parametrize("fault", ["reversed", "left"])
def test_four_bits_of_other_weights_fail(
    fault: str, wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    other = {
        "reversed": lambda rows: torch.arange(rows).flip(0),
        "left": lambda rows: None,
    }[fault]
    right = llamacpp.requantize

    def wrong(model: Path, out: Path, kind: str) -> None:
        monkeypatch.setattr(Layout, "row_order", lambda self, name, rows: other(rows))
        right(model, out, kind)

    monkeypatch.setattr(llamacpp, "requantize", wrong)
    adapter, out = adapter_dir(wide("llama"), size=SIZE), tmp_path / "m.gguf"
    assert export(adapter, "merged-gguf", out, "--dtype", "q4_k_m") == 4
    assert_refused(capsys, "tensors are wrong", "_proj.weight", "nothing was kept")
    assert not out.exists()


def test_four_bits_need_llama_cpp(
    wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(llamacpp, "is_installed", lambda: False)
    adapter, out = adapter_dir(wide("llama")), tmp_path / "m.gguf"
    assert export(adapter, "merged-gguf", out, "--dtype", "q4_k_m") == 2
    assert_refused(capsys, "llama.cpp's own quantizer", "loractl[llama]")


def test_the_dtype_of_a_merged_model_is_that_of_its_base(
    wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    assert export(adapter_dir(wide("phi3"), size=SIZE), "merged-gguf", tmp_path / "m.gguf") == 0
    err = capsys.readouterr().err
    assert "llama.cpp (f32)" in err and "the context is limited to 48 tokens" in err


def test_logits_of_llama_cpp_agree_with_peft(
    wide: Make, adapter_dir: Make, peft_model: Callable[..., Any], tmp_path: Path
) -> None:
    base, out = wide("qwen3"), tmp_path / "m.gguf"
    adapter = adapter_dir(base, size=SIZE, scaling="rslora", rank_pattern={"q_proj": 2})
    assert export(adapter, "merged-gguf", out, "--no-verify") == 0
    ids = torch.arange(40).view(1, -1)
    with torch.no_grad():
        expected = peft_model(base, adapter)(input_ids=ids).logits[0]
    found = torch.from_numpy(llamacpp.ask(out, sequences=ids.tolist()).logits[0])
    assert torch.allclose(found, expected, atol=1e-4)


def test_an_adapter_of_several_ranks_and_scales_is_held_by_one_alpha(
    wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    adapter = adapter_dir(
        wide("llama"), size=SIZE, scaling="rslora",
        rank_pattern={"q_proj": 2, "up_proj": 8}, alpha_pattern={"v_proj": 11},
    )  # fmt: skip
    assert export(adapter, "gguf", tmp_path / "a.gguf") == 0
    assert "proven" in capsys.readouterr().err
    reader = GGUFReader(tmp_path / "a.gguf")
    ranks = {t.name: int(t.shape[0]) for t in reader.tensors if t.name.endswith("lora_b")}
    assert ranks["blk.0.attn_q.weight.lora_b"] == 2 and ranks["blk.1.ffn_up.weight.lora_b"] == 8
    alpha = reader.get_field("adapter.lora.alpha")
    assert alpha is not None and alpha.contents() == pytest.approx(6 * 4**0.5)


Change = Callable[[list[Piece]], list[Piece]]


def scaled(by: float, name: str) -> Change:
    def change(pieces: list[Piece]) -> list[Piece]:
        assert any(piece.name == name for piece in pieces)

        def strips(piece: Piece) -> Iterator[Tensor]:
            yield from (strip * by for strip in piece.strips())

        return [
            dataclasses.replace(piece, strips=lambda piece=piece: strips(piece))  # type: ignore[misc]
            if piece.name == name
            else piece
            for piece in pieces
        ]

    return change


def without(*names: str) -> Change:
    return lambda pieces: [piece for piece in pieces if piece.name not in names]


ADAPTER_FAULTS: dict[str, Change] = {
    "one tensor scaled": scaled(1.02, "blk.1.attn_v.weight.lora_b"),
    "one pair left out": without("blk.1.ffn_up.weight.lora_a", "blk.1.ffn_up.weight.lora_b"),
    "one half left out": without("blk.1.ffn_up.weight.lora_b"),
}


@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
def test_a_corrupted_adapter_fails_the_proof_and_leaves_nothing(
    fault: str, wide: Make, adapter_dir: Make, capsys: Captured,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    right = gguf.halves
    monkeypatch.setattr(gguf, "halves", lambda *a: ADAPTER_FAULTS[fault](right(*a)))
    adapter = adapter_dir(wide("llama"), size=SIZE)
    assert export(adapter, "gguf", tmp_path / "a.gguf") == 4
    assert_refused(capsys, "FAILED")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("where", ["everywhere", "in the adapter", "in the base"])
def test_rows_of_q_and_k_left_as_they_stand_fail_the_proof(
    where: str, wide: Make, adapter_dir: Make, capsys: Captured,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    right, halves = Layout.row_order, gguf.halves

    def wrong(self: Layout, name: str, rows: int) -> Tensor | None:
        return None if right(self, name, rows) is None else torch.arange(rows)

    def halves_of_an_adapter(*given: Any) -> list[Piece]:
        with monkeypatch.context() as patch:
            patch.setattr(Layout, "row_order", right if where == "in the base" else wrong)
            return halves(*given)

    monkeypatch.setattr(gguf, "halves", halves_of_an_adapter)
    if where != "in the adapter":
        monkeypatch.setattr(Layout, "row_order", wrong)
    assert export(adapter_dir(wide("llama"), size=SIZE), "gguf", tmp_path / "a.gguf") == 4
    assert_refused(capsys, "FAILED: logits in llama.cpp")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


MODEL_FAULTS: dict[str, Change] = {
    "one tensor scaled": scaled(1.02, "blk.1.attn_v.weight"),
    "a norm scaled": scaled(1.02, "blk.1.ffn_norm.weight"),
    "one tensor left out": without("blk.1.ffn_up.weight"),
}


@pytest.mark.parametrize("dtype", sampled(["f32", "q8_0"], "q8_0"))
@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_corrupted_model_fails_the_proof_and_leaves_nothing(
    fault: str, dtype: str, wide: Make, adapter_dir: Make, capsys: Captured,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    right = gguf.weights
    monkeypatch.setattr(gguf, "weights", lambda *a: MODEL_FAULTS[fault](right(*a)))
    adapter, out = adapter_dir(wide("llama"), size=SIZE), tmp_path / "m.gguf"
    assert export(adapter, "merged-gguf", out, "--dtype", dtype) == 4
    assert_refused(capsys, "FAILED")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_token_ids_other_than_those_of_training_fail_the_proof(
    wide: Make, adapter_dir: Make, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = gguf_vocabulary.byte_level_fields

    def wrong(vocabulary: Any) -> dict[str, Any]:
        found = right(vocabulary)
        merges = found["tokenizer.ggml.merges"]
        assert isinstance(merges, list)
        return {**found, "tokenizer.ggml.merges": merges[::-1]}

    monkeypatch.setattr(gguf_vocabulary, "byte_level_fields", wrong)
    assert export(adapter_dir(wide("qwen2"), size=SIZE), "gguf", tmp_path / "a.gguf") == 4
    assert_refused(capsys, "FAILED", "first text that differs")


def test_an_adapted_head_that_is_tied_goes_into_a_merged_model_alone(
    wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    adapter = adapter_dir(wide("llama-tied"), size=SIZE, target_modules=["head", "up_proj"])
    assert export(adapter, "gguf", tmp_path / "a.gguf") == 2
    assert_refused(capsys, "lm_head shares its weight with the embedding", "--to merged-gguf")
    assert export(adapter, "merged-gguf", tmp_path / "m.gguf") == 0
    err = capsys.readouterr().err
    assert "proven" in err and "(untied)" in err
    names = {tensor.name for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    assert "output.weight" in names


def test_an_adapted_embedding_goes_into_a_merged_model_alone(
    wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    adapter = adapter_dir(wide("qwen3"), size=SIZE, target_modules=["embedding"])
    for to in ("gguf", "peft"):
        assert export(adapter, to, tmp_path / "a") == 2
        assert_refused(capsys, "model.embed_tokens is")
    assert export(adapter, "merged-gguf", tmp_path / "m.gguf", "--dtype", "q8_0") == 0
    assert "proven" in capsys.readouterr().err


def test_a_portable_adapter_has_one_rank_and_one_alpha_and_the_same_logits_in_peft(
    wide: Make, adapter_dir: Make, peft_model: Callable[..., Any], capsys: Captured, tmp_path: Path
) -> None:
    base, out = wide("llama"), tmp_path / "out"
    adapter = adapter_dir(
        base, size=SIZE, scaling="rslora",
        rank_pattern={"q_proj": 2, "up_proj": 8}, alpha_pattern={"v_proj": 11},
    )  # fmt: skip
    assert export(adapter, "peft", out) == 0
    assert "proven: logits in PEFT" in capsys.readouterr().err
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["use_rslora"] is False and config["r"] == 8 and config["bias"] == "none"
    assert config["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
    ]  # fmt: skip
    tensors = load_file(out / "adapter_model.safetensors")
    assert {min(tensor.shape) for tensor in tensors.values()} == {8}
    ids = torch.arange(40).view(1, -1)
    with torch.no_grad():
        one, other = (peft_model(base, d)(input_ids=ids).logits for d in (adapter, out))
    assert torch.allclose(one, other, atol=1e-5)


def test_a_portable_adapter_in_half_precision_is_proven(
    wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    adapter = adapter_dir(wide("llama"), size=SIZE)
    for dtype, stored in {"f16": torch.float16, "bf16": torch.bfloat16}.items():
        assert export(adapter, "peft", tmp_path / dtype, "--dtype", dtype) == 0
        assert "proven" in capsys.readouterr().err
        tensors = load_file(tmp_path / dtype / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {stored}


def test_a_directory_for_ollama_holds_the_model_its_template_and_its_stop(
    wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    adapter, out = adapter_dir(wide("llama"), size=SIZE), tmp_path / "out"
    assert export(adapter, "ollama", out) == 0
    err = capsys.readouterr().err
    assert "proven" in err and "template: ChatML" in err
    lines = (out / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf" and lines[-1] == 'PARAMETER stop "<|im_end|>"'
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "model.gguf"]


def test_modules_that_are_trained_whole_go_into_a_merged_model_alone(
    wide: Make, config_file: Make, capsys: Captured, tmp_path: Path
) -> None:
    whole = "lora: {modules_to_save: [lm_head, norm, layers.1.mlp], target_modules: attention}"
    assert main(["train", str(config_file(whole, model=wide("llama-tied")))]) == 0
    capsys.readouterr()
    for to in ("gguf", "peft"):
        assert export(tmp_path / "run", to, tmp_path / "adapter-out") == 2
        assert_refused(capsys, "lm_head.weight")
    assert export(tmp_path / "run", "merged-gguf", tmp_path / "m.gguf") == 0
    assert "proven: logits in llama.cpp (f32)" in capsys.readouterr().err
