"""Adapter files: what is wrong with those that are refused, and what is written is read back."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft.adapter import CONFIG, WEIGHTS, Adapter, read
from loractl.artifacts.peft.attach import load_, ranks_of
from loractl.artifacts.run import checkpoint
from loractl.errors import ArtifactError
from tests.artifacts.peft.conftest import Change, Make, ours, peft_saved, plain

# PEFT asks transformers for a name that is going away; nothing to do with adapters.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def test_a_magnitude_too_few_too_short_or_unannounced_is_refused(
    base: Make, tmp_path: Path
) -> None:
    where, directory = base("llama"), tmp_path / "peft"
    peft_saved(where, directory, target_modules=["q_proj"], use_dora=True)
    whole = load_file(directory / WEIGHTS)
    name = next(n for n in sorted(whole) if n.endswith("lora_magnitude_vector"))
    save_file({n: t for n, t in whole.items() if n != name}, directory / WEIGHTS)
    with pytest.raises(ArtifactError, match=f"1 tensors are missing: {name}"):
        ours(where, directory)
    save_file({**whole, name: whole[name][:-1].clone()}, directory / WEIGHTS)
    with pytest.raises(ArtifactError, match=rf"{name} has shape \[31\], expected \[32\]"):
        ours(where, directory)
    save_file(whole, directory / WEIGHTS)
    config = json.loads((directory / CONFIG).read_text("utf-8"))
    (directory / CONFIG).write_text(json.dumps({**config, "use_dora": False}), "utf-8")
    with pytest.raises(ArtifactError, match=f"unexpected: {name}"):
        ours(where, directory)
    (directory / CONFIG).write_text(json.dumps({**config, "use_dora": "yes"}), "utf-8")
    with pytest.raises(ArtifactError, match='use_dora is "yes"'):
        read(directory)


def test_a_pattern_that_is_no_regex_is_refused_by_its_file_and_field(
    base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"))
    config = json.loads((directory / CONFIG).read_text("utf-8"))
    config["rank_pattern"] = {"(": 4}
    (directory / CONFIG).write_text(json.dumps(config), "utf-8")
    with pytest.raises(ArtifactError, match=f"{CONFIG}: rank_pattern: '\\(' is not a valid regex"):
        ours(base("llama"), directory)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"LORA"', b"\xff\xfe", b'{"r": ' + b"9" * 5000 + b"}", b"[" * 10**5],
)
@pytest.mark.parametrize("name", [CONFIG, adapters.ABOUT])
def test_a_file_that_is_no_json_object_is_named(
    name: str, content: bytes, base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"))
    (directory / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{directory / name}: "):
        read(directory)


def test_a_chat_template_that_is_no_text_is_named(base: Make, adapter_dir: Make) -> None:
    directory = adapter_dir(base("llama"))
    (directory / adapters.TEMPLATE).write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="chat_template.jinja: not UTF-8"):
        read(directory)


@pytest.mark.parametrize("about", [{}, {"base": "x"}, {"base": {}}, {"base": {"fingerprint": 3}}])
def test_a_foreign_loractl_json_tells_no_fingerprint(
    about: dict[str, Any], base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"))
    (directory / adapters.ABOUT).write_text(json.dumps(about), "utf-8")
    assert read(directory).trained_on is None


def first_A(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if "lora_A" in name)


def poison(tensors: dict[str, Tensor], value: float) -> None:
    tensors[first_A(tensors)][1, 2] = value


def rename(tensors: dict[str, Tensor], old: str, new: str) -> None:
    for name in list(tensors):
        tensors[name.replace(old, new)] = tensors.pop(name)


K = r"base_model\.model\.model\.layers\.0\.mlp\.down_proj\.lora_A\.weight"
BROKEN: dict[str, tuple[Change, str]] = {
    "nan": (lambda t: poison(t, float("nan")), f"{K} holds values that are not finite"),
    "inf": (lambda t: poison(t, float("inf")), f"{K} holds values that are not finite"),
    "half-missing": (lambda t: t.pop(first_A(t)), f"1 tensors are missing: {K}"),
    "other-prefix": (
        lambda t: rename(t, "base_model.model.", "module."),
        r"0 of 28 tensors match .* unexpected: module\.model\..* \(28 in all\); expected names",
    ),
    "adapter-name": (lambda t: rename(t, "lora_A.", "lora_A.default."), "14 of 28 tensors match"),
    "extra": (lambda t: t.update(extra=torch.ones(2)), "28 of 29 tensors match .* extra;"),
    "magnitude": (
        lambda t: t.update({first_A(t)[: -len("lora_A.weight")] + "lora_magnitude": torch.ones(2)}),
        "unexpected: .*lora_magnitude;",
    ),
    "empty": (lambda t: t.clear(), "0 of 0 tensors match"),
    "wrong-rank": (
        lambda t: t.update({first_A(t): t[first_A(t)][:2]}),
        rf"{K} has shape \[2, 48\], expected \[4, 48\] \(the rank r of adapter_config.json is 4,"
        r" the layer is 48 -> 32\)",
    ),
    "wrong-width": (
        lambda t: t.update({first_A(t): t[first_A(t)][:, :16].clone()}),
        rf"{K} has shape \[4, 16\], expected \[4, 48\]",
    ),
    "one-dimension": (
        lambda t: t.update({first_A(t): t[first_A(t)].flatten()}),
        rf"{K} has shape \[192\], expected \[4, 48\]",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_tensors_that_do_not_fit_are_named_with_both_sides(
    fault: str, base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"))
    change, message = BROKEN[fault]
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)
    model = plain(base("llama"))
    with pytest.raises(ArtifactError, match=message) as caught:
        load_(model, read(directory))
    assert WEIGHTS in str(caught.value)
    assert type(model.model.layers[0].mlp.down_proj) is torch.nn.Linear, "a half-adapted model"


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.5, -1])
def test_a_truncated_file_is_refused(keep: float, base: Make, adapter_dir: Make) -> None:
    directory = adapter_dir(base("llama"))
    content = (directory / WEIGHTS).read_bytes()
    end = int(len(content) * keep) if isinstance(keep, float) else keep
    (directory / WEIGHTS).write_bytes(content[:end])
    with pytest.raises(ArtifactError, match=f"{WEIGHTS}: truncated or corrupt"):
        read(directory)


def test_another_models_adapter_is_refused(base: Make, adapter_dir: Make) -> None:
    adapter = read(adapter_dir(base("gpt2")))
    with pytest.raises(ArtifactError, match="0 of 16 tensors match a module of the model"):
        ranks_of(adapter, plain(base("llama")))


def test_an_adapter_that_is_a_pickle_alone_is_refused(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"))
    torch.save(load_file(directory / WEIGHTS), directory / "adapter_model.bin")
    (directory / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=f"{WEIGHTS}: not found; adapter_model.bin is a pickle"):
        read(directory)
    (directory / CONFIG).unlink()
    with pytest.raises(ArtifactError, match="adapter_model.bin: a pickle, which can run code"):
        read(directory)


def test_a_missing_file_is_named(base: Make, adapter_dir: Make, tmp_path: Path) -> None:
    directory = adapter_dir(base("llama"))
    shutil.copytree(directory, tmp_path / "b")
    (directory / CONFIG).unlink()
    (tmp_path / "b" / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=f"{CONFIG}: not found"):
        read(directory)
    with pytest.raises(ArtifactError, match=f"{WEIGHTS}: not found$"):
        read(tmp_path / "b")
    with pytest.raises(ArtifactError, match="no such directory, expected an adapter"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="this is not an adapter, run or checkpoint directory"):
        read(tmp_path / "empty")


def test_a_run_means_its_final_adapter(base: Make, adapter_dir: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="the run has no final adapter yet; finish it"):
        adapters.find(run)
    adapter_dir(base("llama")).rename(run / "adapter")
    assert adapters.find(run) == run / "adapter"


def test_a_run_that_trained_every_weight_has_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="a run with method: full has no adapter; its model is"):
        adapters.find(tmp_path / "run")


def test_a_damaged_checkpoint_is_no_adapter(base: Make, adapter_dir: Make) -> None:
    directory = adapter_dir(base("llama"))
    where = directory / WEIGHTS
    for name in (checkpoint.OPTIMIZER, checkpoint.STATE):
        (directory / name).write_text("{}")
    checkpoint.seal(directory, 1)
    read(directory)
    content = bytearray(where.read_bytes())
    content[-3] ^= 1
    where.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{where}: damaged: its SHA-256 is not the one in"):
        read(directory)


def test_what_is_half_written_is_no_adapter(base: Make, adapter_dir: Make) -> None:
    directory = adapter_dir(base("llama"), name=".step-000002.tmp-77")
    with pytest.raises(ArtifactError, match="left half-written by a process that was killed"):
        read(directory)


def test_files_have_the_mode_of_new_files(base: Make, adapter_dir: Make) -> None:
    old = os.umask(0o027)
    try:
        directory = adapter_dir(base("llama"))
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o640}


def test_what_is_written_is_read_back(base: Make, adapter_dir: Make) -> None:
    settings: dict[str, Any] = {"rank": 3, "alpha": 2.5, "scaling": "rslora"}
    adapter: Adapter = read(adapter_dir(base("llama"), rank_pattern={"q_proj": 2}, **settings))
    assert (adapter.spec.rank, adapter.spec.alpha, adapter.spec.scaling) == (3, 2.5, "rslora")
    assert adapter.base == str(base("llama"))
    assert adapter.chat_template and "<|im_start|>" in adapter.chat_template
    found = ranks_of(adapter, plain(base("llama")))
    assert {size.rank for name, size in found.items() if "q_proj" in name} == {2}
    assert {size.rank for name, size in found.items() if "q_proj" not in name} == {3}
