"""`loractl adapters resize`: what it makes answers as it should, here and in PEFT; its refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.artifacts.peft.adapter import ABOUT, CONFIG
from loractl.cli.main import main
from loractl.lora.inject import adapters
from tests.commands.adapter_files import (
    TARGETS,
    assert_close,
    assert_equal_products,
    edited,
    ours,
    products,
)
from tests.commands.conftest import assert_refused, said

Make = Callable[..., Path]
Logits = Callable[..., Tensor]
Captured = pytest.CaptureFixture[str]

pytestmark = [
    # PEFT asks transformers for a name that is going away; nothing to do with adapters.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # What PEFT says whenever one of two tied layers is adapted.
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]


def resize(directory: Path, out: Path, *flags: str) -> int:
    return main(["adapters", "resize", str(directory), "--out", str(out), *flags])


@pytest.mark.parametrize("target", TARGETS)
def test_resizing_to_more_than_the_rank_changes_no_answer_here_and_in_peft(
    target: str,
    base: Make,
    adapter_dir: Make,
    peft_model: Callable[..., Any],
    logits: Logits,
    capsys: Captured,
    tmp_path: Path,
) -> None:
    architecture, settings = TARGETS[target]
    directory = adapter_dir(base(architecture), scaling="rslora", **settings)
    assert resize(directory, tmp_path / "out", "--rank", "9") == 0
    assert "nothing was reduced" in capsys.readouterr().err
    expected = logits(ours(base(architecture), directory))
    assert_close(logits(ours(base(architecture), tmp_path / "out")), expected)
    assert_close(logits(peft_model(base(architecture), tmp_path / "out")), expected)
    about = json.loads((tmp_path / "out" / ABOUT).read_text())
    assert about["made"]["by"] == "adapters resize" and about["base"]["fingerprint"]


def test_an_energy_gives_each_module_its_own_rank_and_tells_the_error(
    base: Make,
    adapter_dir: Make,
    peft_model: Callable[..., Any],
    logits: Logits,
    capsys: Captured,
    tmp_path: Path,
) -> None:
    directory, out = adapter_dir(base("llama")), tmp_path / "out"
    assert resize(directory, out, "--energy", "0.9", "--json") == 0
    report = said(capsys)
    ranks = {name: module["rank"] for name, module in report["modules"].items()}
    assert set(ranks.values()) == {3, 4}
    config = json.loads((out / CONFIG).read_text())
    assert config["r"] == config["lora_alpha"] == 4 and set(config["rank_pattern"].values()) == {3}
    assert_close(logits(peft_model(base("llama"), out)), logits(ours(base("llama"), out)))
    before, after = products(directory), products(out)
    lost = sum(float((before[name] - after[name]).norm() ** 2) for name in before)
    total = sum(float(one.norm() ** 2) for one in before.values())
    assert report["error"] == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    for name, module in report["modules"].items():
        S = torch.linalg.svdvals(before[name])
        best = float(S[module["rank"] :].norm() / S.norm())
        assert module["error"] == pytest.approx(best, abs=1e-6) and module["kept_energy"] >= 0.9


def test_what_stands_at_the_place_of_the_result_is_kept_unless_it_may_go(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    directory, out = adapter_dir(base("llama")), tmp_path / "out"
    assert resize(directory, out, "--rank", "2") == 0
    assert resize(directory, out, "--rank", "3") == 2
    assert_refused(capsys, f"--out: {out} exists", "--overwrite")
    assert resize(directory, out, "--rank", "3", "--overwrite") == 0
    assert json.loads((out / CONFIG).read_text())["r"] == 3
    assert resize(directory, directory, "--rank", "2", "--overwrite") == 2
    assert_refused(capsys, "would replace", str(directory))
    (tmp_path / "file").touch()
    assert resize(directory, tmp_path / "file", "--rank", "2", "--overwrite") == 2
    assert_refused(capsys, f"--out: {tmp_path / 'file'} is a file")
    assert resize(directory, tmp_path / "file" / "new", "--rank", "2") == 2
    assert_refused(capsys, f"{tmp_path / 'file'} is a file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    capsys.readouterr()
    assert resize(directory, tmp_path / "mine", "--rank", "2", "--overwrite") == 2
    assert_refused(capsys, "is not an adapter, and --overwrite replaces only adapters")
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["found neither"]),
        (["--rank", "2", "--energy", "0.5"], ["found both"]),
        (["--energy", "0"], ["--energy: found 0.0"]),
        (["--energy", "95"], ["--energy: found 95.0", "at most 1"]),
        (["--energy", "nan"], ["--energy: found nan"]),
        (["--rank", "0"], ["--rank", "loractl adapters resize --help"]),
        (["--rank", "2.5"], ["--rank", "whole number"]),
    ],
)
def test_the_size_is_one_rank_or_one_share(
    flags: list[str], words: list[str], capsys: Captured, tmp_path: Path
) -> None:
    assert resize(tmp_path / "absent", tmp_path / "out", *flags) == 2
    assert_refused(capsys, *words)


def test_adapters_that_are_no_plain_low_rank_update_are_refused_by_name(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    first = "base_model.model.model.layers.0.self_attn.q_proj"
    cases: dict[str, tuple[Callable[[dict[str, Tensor]], object], list[str]]] = {
        "half": (lambda t: t.pop(f"{first}.lora_B.weight"), [f"missing: {first}.lora_B.weight"]),
        "shape": (
            lambda t: t.update({f"{first}.lora_A.weight": torch.ones(3, 32)}),
            [first, "[3, 32]", "expected [4, d_in]"],
        ),
        "magnitude": (
            lambda t: t.update({f"{first}.lora_magnitude_vector": torch.ones(32)}),
            [f"{first}.lora_magnitude_vector", "plain low-rank update"],
        ),
        "zero": (
            lambda t: t.update({n: torch.zeros_like(v) for n, v in t.items() if "lora_B" in n}),
            ["changes nothing"],
        ),
    }
    for name, (change, words) in cases.items():
        directory = adapter_dir(base("llama"), name)
        edited(directory, change)
        assert resize(directory, tmp_path / "out", "--rank", "2") == 2, name
        assert_refused(capsys, *words)
        assert not (tmp_path / "out").exists()
    assert resize(tmp_path / "absent", tmp_path / "out", "--rank", "2") == 2
    assert_refused(capsys, f"{tmp_path / 'absent'}: no such directory")


def test_a_checkpoint_that_counts_from_a_start_is_resized_as_the_update_that_it_is(
    base: Make, adapter_dir: Make, logits: Logits, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"), target_modules="minimal")
    starts: dict[str, Tensor] = {}

    def start(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            started = name.replace("lora_A", "lora_A0").replace("lora_B", "lora_B0")
            starts[started] = tensor + 0.05 * torch.ones_like(tensor)
        tensors.update(starts)

    edited(directory, start)
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    out = tmp_path / "out"
    assert resize(directory, out, "--rank", "8") == 0
    assert_close(logits(ours(base("llama"), out)), logits(ours(base("llama"), directory)))
    layers = adapters(ours(base("llama"), directory))
    expected = {name: layer.delta().double() for name, layer in layers.items()}
    assert_equal_products(products(out), expected)
    assert json.loads((out / CONFIG).read_text())["init_lora_weights"] is True
    edited(directory, lambda tensors: tensors.pop(sorted(starts)[0]))
    assert resize(directory, out, "--rank", "8", "--overwrite") == 2
