"""`loractl export`: what it refuses, what it does not prove, and what it leaves where it writes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.artifacts.gguf import llamacpp
from loractl.cli.main import main
from tests.commands.conftest import assert_refused

Make = Callable[..., Path]
Captured = pytest.CaptureFixture[str]
SIZE = 0.05  # of A and B
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def export(adapter: Path, to: str, out: Path, *flags: str) -> int:
    return main(["export", str(adapter), "--to", to, "--out", str(out), *flags])


def test_a_head_of_its_own_that_the_architecture_cannot_hold_is_refused(
    wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    adapter = adapter_dir(wide("gemma2"), size=SIZE, target_modules=["head"])
    assert export(adapter, "merged-gguf", tmp_path / "m.gguf") == 2
    assert_refused(capsys, "gemma2 cannot hold")


def test_dora_is_refused_by_name_and_goes_into_a_merged_model(
    wide: Make, config_file: Make, capsys: Captured, tmp_path: Path
) -> None:
    assert main(["train", str(config_file("method: dora", model=wide("llama")))]) == 0
    capsys.readouterr()
    for to in ("gguf", "peft"):
        assert export(tmp_path / "run", to, tmp_path / "a") == 2
        assert_refused(capsys, "lora_magnitude_vector is not part of a plain low-rank update")
    assert export(tmp_path / "run", "merged-gguf", tmp_path / "m.gguf") == 0
    assert "proven" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_another_architecture_is_refused_by_name(
    architecture: str, base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    assert export(adapter_dir(base(architecture)), "gguf", tmp_path / "a.gguf") == 2
    assert_refused(capsys, f"model_type {architecture} cannot be written as GGUF", "qwen3")


def test_a_reader_that_is_not_there_is_told(
    wide: Make, adapter_dir: Make, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(llamacpp, "is_installed", lambda: False)
    assert export(adapter_dir(wide("llama")), "gguf", tmp_path / "a.gguf") == 0
    err = capsys.readouterr().err
    assert "not proven: llama-cpp-python is not installed" in err and "logits" not in err


@pytest.mark.parametrize("to", ["peft", "gguf", "merged-gguf", "ollama"])
def test_without_verify_it_is_told_that_nothing_is_proven(
    to: str, wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    assert export(adapter_dir(wide("llama")), to, tmp_path / "out", "--no-verify") == 0
    err = capsys.readouterr().err
    assert "not proven: --no-verify was given" in err and "logits" not in err


@pytest.mark.parametrize("to", ["peft", "gguf"])
def test_what_stands_there_is_replaced_with_overwrite_alone(
    to: str, wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    adapter, out = adapter_dir(wide("llama")), tmp_path / "out"
    assert export(adapter, to, out, "--no-verify") == 0
    assert export(adapter, to, out, "--no-verify") == 2
    assert_refused(capsys, f"--out: {out} exists")
    assert export(adapter, to, out, "--no-verify", "--overwrite") == 0
    other = "gguf" if to == "peft" else "peft"
    assert export(adapter, other, out, "--no-verify", "--overwrite") == 2
    assert_refused(capsys, "expected a file" if to == "peft" else "expected a directory")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--to", "onnx"], ["--to: found 'onnx'", "peft, gguf, merged-gguf, ollama"]),
        (["--to", "gguf", "--dtype", "q8_0"], ["'q8_0'", "f32, f16, bf16", "shorter than"]),
        (["--to", "peft", "--dtype", "float32"], ["'float32'", "f32, f16, bf16"]),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_read(
    flags: list[str], words: list[str], capsys: Captured, tmp_path: Path
) -> None:
    assert main(["export", "nowhere", "--out", str(tmp_path / "out"), *flags]) == 2
    assert_refused(capsys, *words)


def test_a_chat_template_that_ollama_has_no_family_for_is_refused(
    wide: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    adapter = adapter_dir(wide("llama"), size=SIZE)
    template = "{% for m in messages %}## {{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    (adapter / "chat_template.jinja").write_text(template)
    assert export(adapter, "ollama", tmp_path / "out") == 2
    assert_refused(capsys, "does not match any family", "ChatML, Llama 3, Gemma")
    assert not (tmp_path / "out").exists()
