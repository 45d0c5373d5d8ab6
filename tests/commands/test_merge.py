"""`loractl merge` from the command line: what it refuses, says, proves and leaves behind."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loractl.artifacts.peft.adapter import ABOUT, CONFIG
from loractl.cli.main import main
from loractl.lora.layer import LoraLayer

Make = Callable[..., Path]
Captured = pytest.CaptureFixture[str]
ORDINARY = 0.016  # of A and B: updates of about 1 % of the weights


def merge(adapter: Path, out: Path, *flags: str) -> int:
    return main(["merge", str(adapter), "--out", str(out), *flags])


def tree(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def assert_refused(capsys: Captured, *words: str) -> None:
    err = capsys.readouterr().err
    assert err.startswith("error:") and all(word in err for word in words), err


def test_a_run_is_trained_merged_and_proven(
    config_file: Make, base: Make, capsys: Captured, logits: Callable[..., Tensor], tmp_path: Path
) -> None:
    before = tree(base("llama"))
    assert main(["train", str(config_file())]) == 0
    assert merge(tmp_path / "run", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "proven: logits of the merged model (float32)" in said.err
    assert said.out.splitlines()[-1] == str(tmp_path / "out")
    assert float((logits(tmp_path / "out") - logits(base("llama"))).abs().max()) > 0.05
    assert tree(base("llama")) == before
    step = tmp_path / "run" / "checkpoints" / "step-000002"
    assert merge(step, tmp_path / "earlier", "--dtype", "bfloat16") == 0
    assert "proven: logits of the merged model (bfloat16)" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2"])
def test_an_untied_head_is_told(
    architecture: str, base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    directory = adapter_dir(base(architecture), target_modules=["embedding"])
    assert merge(directory, tmp_path / "out") == 0
    assert "no longer shares the embedding's weight (untied)" in capsys.readouterr().err


def test_rounding_that_drowns_the_adapter_is_told(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"), size=0.003)
    assert merge(directory, tmp_path / "low", "--dtype", "bfloat16") == 0
    assert "note: rounding to bfloat16 changes logits about as much" in capsys.readouterr().err
    assert merge(directory, tmp_path / "full") == 0
    assert "note:" not in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "auto", "BFLOAT16", ""])
def test_another_word_for_a_dtype_is_refused_with_the_three(
    dtype: str, base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"))
    assert merge(directory, tmp_path / "out", "--dtype", dtype) == 2
    assert_refused(capsys, "--dtype", repr(dtype), "float32, bfloat16, float16")


def test_what_stands_there_is_replaced_with_overwrite_alone(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    directory, out = adapter_dir(base("llama")), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert merge(directory, out) == 2
    assert_refused(capsys, f"--out: {out} exists", "--overwrite")
    assert tree(out).keys() == {"mine.txt"}
    assert merge(directory, out, "--overwrite") == 0
    assert "model.safetensors" in tree(out) and "mine.txt" not in tree(out)


def test_a_failed_merge_with_overwrite_leaves_what_stood_there(
    base: Make, adapter_dir: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    directory, out = adapter_dir(base("llama")), tmp_path / "out"
    assert merge(directory, out) == 0
    before = tree(out)
    break_update(monkeypatch, lambda update: update * 1.1)
    assert merge(directory, out, "--overwrite") == 4
    assert tree(out) == before


def test_out_may_be_a_link_whose_target_is_spared(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.txt").write_text("mine")
    (tmp_path / "out").symlink_to("target")
    assert merge(adapter_dir(base("llama")), tmp_path / "out", "--overwrite") == 0
    assert not (tmp_path / "out").is_symlink() and "model.safetensors" in tree(tmp_path / "out")
    assert tree(tmp_path / "target").keys() == {"mine.txt"}


def test_a_file_is_no_out(base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for flags in ([], ["--overwrite"]):
        assert merge(adapter_dir(base("llama"), str(len(flags))), tmp_path / "out", *flags) == 2
        assert_refused(capsys, "is a file, expected a directory")
    assert (tmp_path / "out").read_text() == "mine"


def test_neither_base_nor_adapter_is_overwritten(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    where = tmp_path / "models" / "base"
    shutil.copytree(base("llama"), where)
    directory = adapter_dir(where)
    before = tree(tmp_path)
    for out in (where, where.parent, directory, tmp_path):
        assert merge(directory, out, "--overwrite") == 2
        assert_refused(capsys, f"--out: {out} would replace")
    assert tree(tmp_path) == before


def test_without_verify_it_is_told_that_nothing_is_proven(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    assert merge(adapter_dir(base("llama")), tmp_path / "out", "--no-verify") == 0
    err = capsys.readouterr().err
    assert "not proven: --no-verify was given" in err and "logits" not in err


def test_another_base_of_the_same_shapes_is_refused_unless_it_is_named(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    directory, other = adapter_dir(base("llama")), base("llama", seed=1)
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    assert merge(directory, tmp_path / "out") == 2
    assert_refused(capsys, str(other), "differs from the base", "--base")
    assert not (tmp_path / "out").exists()
    assert merge(directory, tmp_path / "out", "--base", str(other)) == 0
    assert "note:" in capsys.readouterr().err


def test_a_base_that_moved_is_found_by_its_flag_without_a_note(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    shutil.copytree(base("llama"), tmp_path / "base")
    directory = adapter_dir(tmp_path / "base")
    (tmp_path / "base").rename(tmp_path / "moved")
    assert merge(directory, tmp_path / "out") == 2
    assert_refused(capsys, "if the base has moved, name it with --base")
    assert merge(directory, tmp_path / "out", "--base", str(tmp_path / "moved")) == 0
    assert "note" not in capsys.readouterr().err


def test_an_adapter_that_names_no_base_asks_for_it(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"))
    config = json.loads((directory / CONFIG).read_text())
    del config["base_model_name_or_path"]
    (directory / CONFIG).write_text(json.dumps(config))
    (directory / ABOUT).unlink()
    assert merge(directory, tmp_path / "out") == 2
    assert_refused(capsys, CONFIG, "base_model_name_or_path is missing", "--base")
    assert merge(directory, tmp_path / "out", "--base", str(base("llama"))) == 0


def test_a_base_of_another_shape_is_refused(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"))
    assert merge(directory, tmp_path / "out", "--base", str(base("gpt2"))) == 2
    assert "error: " in (err := capsys.readouterr().err) and "0 of 28 tensors match" in err
    assert not (tmp_path / "out").exists()


def test_a_base_that_cannot_be_read_is_named(
    base: Make, gguf_base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"))
    (tmp_path / "short.gguf").write_bytes(gguf_base("llama").read_bytes()[:200])
    shutil.copytree(base("llama"), tmp_path / "new")
    (tmp_path / "new" / "config.json").write_text('{"model_type": "to-come"}')
    for name in ("short.gguf", "new"):
        assert merge(directory, tmp_path / "out", "--base", str(tmp_path / name)) == 2
        err = capsys.readouterr().err
        assert f"error: model {tmp_path / name}: the config" in err and "Traceback" not in err


def test_a_run_of_every_weight_has_nothing_to_merge(
    config_file: Make, capsys: Captured, tmp_path: Path
) -> None:
    path = config_file("method: full", "train: {steps: 1}")
    config = path.read_text().replace("lora:\n  rank: 4\n  target_modules: all-linear\n", "")
    path.write_text(config)
    assert main(["train", str(path)]) == 0
    capsys.readouterr()
    assert merge(tmp_path / "run", tmp_path / "out") == 2
    assert_refused(capsys, "method: full has no adapter", str(tmp_path / "run" / "model"))


def break_update(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor], only: str | None = None
) -> None:
    """Let the formula that merges be wrong: everywhere, or for the one layer of a shape."""
    right = LoraLayer.update_rows

    def wrong(self: LoraLayer, start: int, stop: int) -> Tensor:
        update = right(self, 0, self.weight.shape[0])
        if only is None or only == str(tuple(update.shape)):
            update = change(update)
        return update[start:stop]

    monkeypatch.setattr(LoraLayer, "update_rows", wrong)


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], str | None]] = {
    "a scale 1.1 times as large": (lambda update: update * 1.1, None),
    "a scale in one kind of layer": (lambda update: update * 1.1, "(48, 32)"),
    "updates left out": (torch.zeros_like, "(16, 32)"),
    "square updates transposed": (lambda update: update.T, "(32, 32)"),
    "an update in bfloat16": (lambda update: update.bfloat16().double(), None),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_merge_fails_the_proof_and_leaves_nothing(
    fault: str,
    dtype: str,
    base: Make,
    adapter_dir: Make,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    directory = adapter_dir(base("llama"), size=ORDINARY)
    before = sorted(path.name for path in tmp_path.iterdir())
    break_update(monkeypatch, *FAULTS[fault])
    assert merge(directory, tmp_path / "out", "--dtype", dtype) == 4
    assert_refused(capsys, "FAILED", "tensors are wrong", "nothing was kept")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_adapter_that_changes_nothing_is_refused(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"))
    path = directory / "adapter_model.safetensors"
    zeroed = {n: t * (0 if "lora_B" in n else 1) for n, t in load_file(path).items()}
    save_file(zeroed, path)
    assert merge(directory, tmp_path / "out") == 2
    assert_refused(capsys, "the adapter changes nothing")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_a_gguf_file_is_merged(
    gguf_base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    where = gguf_base("llama")
    assert merge(adapter_dir(where), tmp_path / "out") == 0
    assert "proven: logits of the merged model (bfloat16)" in capsys.readouterr().err


def test_a_missing_adapter_is_named(capsys: Captured, tmp_path: Path) -> None:
    assert merge(tmp_path / "nowhere", tmp_path / "out") == 2
    assert_refused(capsys, f"{tmp_path / 'nowhere'}: no such directory")
