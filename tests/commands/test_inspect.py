"""`loractl inspect`: its numbers against those of the whole products, and what it refuses."""

import importlib.util
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loractl.artifacts.peft.adapter import CONFIG, WEIGHTS, read
from loractl.artifacts.peft.updates import updates
from loractl.cli.main import main
from loractl.reports import figure
from loractl.reports.inspect_plot import layer_of
from tests.commands.conftest import said

Make = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


def inspect(directory: Path, *flags: str) -> int:
    return main(["inspect", str(directory), *flags])


def test_the_measures_are_those_of_the_whole_update(
    base: Make, adapter_dir: Make, capsys: Captured
) -> None:
    directory = adapter_dir(
        base("llama"), target_modules=["embedding", "q_proj", "v_proj"], scaling="rslora",
        rank_pattern={r".*\.1\..*": 2},
    )  # fmt: skip
    assert inspect(directory, "--json") == 0
    report = said(capsys)
    found = updates(read(directory))
    assert report["modules"].keys() == found.keys() and report["base"] == str(base("llama"))
    for name, update in found.items():
        m, product = report["modules"][name], update.factors.product()
        rank = 2 if ".1." in name else 4
        S = torch.linalg.svdvals(product)[:rank]
        energy = S.square().cumsum(0) / S.square().sum()
        p = S / S.sum()
        assert (m["rank"], m["alpha"]) == (rank, 6)
        assert m["scale"] == pytest.approx(6 / math.sqrt(rank))
        assert m["singular_values"] == pytest.approx(S.tolist(), rel=1e-6)
        assert m["energy_by_rank"] == pytest.approx(energy.tolist())
        assert m["norm"] == pytest.approx(float(product.norm()))
        assert m["norm_A"] == pytest.approx(float(update.factors.A.norm()))
        assert m["norm_B"] == pytest.approx(float(update.factors.B.norm()))
        assert m["effective_rank"] == pytest.approx(math.exp(-float((p * p.log()).sum())))
        for share in (90, 95, 99):
            assert m[f"rank_{share}"] == int((energy < share / 100).sum()) + 1
    kinds = report["kinds"]
    assert {kind: k["modules"] for kind, k in kinds.items()} == {
        "embed_tokens": 1, "q_proj": 2, "v_proj": 2,
    }  # fmt: skip
    assert sum(k["parameters"] for k in kinds.values()) == report["parameters"]


def test_the_base_is_not_needed(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    shutil.copytree(base("gpt2"), tmp_path / "base")
    directory = adapter_dir(tmp_path / "base")
    shutil.rmtree(tmp_path / "base")
    assert inspect(directory) == 0
    out = capsys.readouterr().out
    assert "transformer.h.0.attn.c_attn" in out and "mean effective" in out


def test_an_adapter_is_like_itself_and_like_another_by_chance(
    base: Make, adapter_dir: Make, capsys: Captured
) -> None:
    directory = adapter_dir(base("llama"))
    other = adapter_dir(base("llama"), "other", rank=6, size=0.2)
    assert inspect(directory, "--against", str(directory), "--json") == 0
    same = said(capsys)["against"]
    for m in same["modules"].values():
        assert m["cosine"] == pytest.approx(1)
        for phi in (m["phi_A"], m["phi_update"]):
            assert torch.allclose(torch.tensor(phi), torch.ones(4, 4))
    assert same["mean_cosine"] == pytest.approx(1) and same["only_here"] == []
    reports = []
    for one, two in ((directory, other), (other, directory)):
        assert inspect(one, "--against", str(two), "--json") == 0
        reports.append(said(capsys)["against"]["modules"])
    phis = []
    for name, m in reports[0].items():
        phi = torch.tensor(m["phi_update"])
        assert phi.shape == (4, 6) and float(phi.min()) >= 0 and float(phi.max()) <= 1 + 1e-6
        assert torch.allclose(phi, torch.tensor(reports[1][name]["phi_update"]).T, atol=1e-6)
        one, two = (updates(read(d))[name].factors.product().flatten() for d in (directory, other))
        assert m["cosine"] == pytest.approx(float(one @ two / one.norm() / two.norm()), abs=1e-6)
        phis.append(float(phi[-1, -1]) / m["chance"])
    phis.remove(max(phis))  # the first of both was drawn from the same numbers
    assert sum(phis) / len(phis) == pytest.approx(1, abs=0.35)


def test_an_update_that_is_zero_has_no_direction_but_a_report(
    base: Make, adapter_dir: Make, capsys: Captured
) -> None:
    directory = adapter_dir(base("llama"), target_modules="minimal")
    tensors = load_file(directory / WEIGHTS)
    save_file({n: t * (0 if "lora_B" in n else 1) for n, t in tensors.items()}, directory / WEIGHTS)
    assert inspect(directory, "--against", str(directory), "--json") == 0
    report = said(capsys)
    assert {m["effective_rank"] for m in report["modules"].values()} == {0.0}
    against = report["against"]
    assert against["mean_cosine"] is None
    assert {m["cosine"] for m in against["modules"].values()} == {None}
    assert inspect(directory, "--against", str(directory)) == 0
    assert "  -  " in capsys.readouterr().out


def test_adapters_of_other_modules_or_sizes_cannot_be_compared(
    base: Make, adapter_dir: Make, capsys: Captured
) -> None:
    directory = adapter_dir(base("llama"), target_modules="minimal")
    other = adapter_dir(base("gpt2"), "gpt2")
    assert inspect(directory, "--against", str(other)) == 2
    assert "no module in common" in capsys.readouterr().err
    wide = adapter_dir(base("qwen3"), "wide")
    assert inspect(directory, "--against", str(wide)) == 2
    err = capsys.readouterr().err
    assert "q_proj differs in size (32 -> 32 and 32 -> 64)" in err
    part = adapter_dir(base("llama"), "part", layers=[1])
    assert inspect(directory, "--against", str(part)) == 0
    out = capsys.readouterr().out
    assert "only here: model.layers.0." in out and "only there: model.layers.1." in out


def test_what_an_adapter_holds_beside_low_rank_updates_is_told(
    base: Make, adapter_dir: Make, capsys: Captured
) -> None:
    directory = adapter_dir(base("llama"), target_modules="minimal")
    tensors = load_file(directory / WEIGHTS)
    length = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    save_file({**tensors, length: torch.ones(32)}, directory / WEIGHTS)
    assert inspect(directory) == 0
    assert f"not included in dW: {length} (1 such tensors)" in capsys.readouterr().out


NEEDS_MATPLOTLIB = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)


@NEEDS_MATPLOTLIB
@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG\r\n"), ("svg", b"<?xml"), ("PNG", b"\x89PNG\r\n")]
)
def test_the_plot_is_a_picture_of_its_ending(
    ending: str, start: bytes, base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    path = tmp_path / f"spectra.{ending}"
    assert inspect(adapter_dir(base("llama")), "--plot", str(path)) == 0
    assert path.read_bytes().startswith(start) and path.stat().st_size > 10_000
    assert capsys.readouterr().out.splitlines()[-1] == str(path)


def test_a_plot_that_cannot_be_drawn_is_refused_first(
    base: Make,
    adapter_dir: Make,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    directory = adapter_dir(base("llama"))
    for name, word in (
        ("a.pdf", ".png or .svg"),
        ("no/where/a.png", "not in an existing directory"),
    ):
        assert inspect(directory, "--plot", str(tmp_path / name)) == 2
        assert word in capsys.readouterr().err
    monkeypatch.setattr(figure, "find_spec", lambda name: None)
    assert inspect(directory, "--plot", str(tmp_path / "a.png")) == 2
    assert "matplotlib is not installed" in capsys.readouterr().err


def test_what_is_no_adapter_is_named(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    assert inspect(tmp_path / "absent") == 2
    assert f"{tmp_path / 'absent'}: no such directory" in capsys.readouterr().err
    assert inspect(base("llama")) == 2
    assert CONFIG in capsys.readouterr().err
    directory = adapter_dir(base("llama"))
    (directory / WEIGHTS).write_bytes(b"short")
    assert inspect(directory) == 2
    assert "truncated or corrupt" in capsys.readouterr().err


def test_help_of_all_these_commands_loads_no_torch_and_shows_an_example() -> None:
    code = (
        "import sys; from loractl.cli.main import main\n"
        "for words in (['inspect'], ['adapters'], *(['adapters', c] for c in"
        " ('resize', 'combine', 'extract'))):\n"
        "    assert main([*words, '--help']) == 0\n"
        "    assert main([*words, '--bogus']) == 2\n"
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Example: loractl ") == 5
    assert "--bogus: unknown option; see loractl inspect --help" in done.stderr


def test_the_colors_of_the_plot_are_numbers_of_layers() -> None:
    assert layer_of("model.layers.15.self_attn.q_proj") == 15
    assert layer_of("transformer.h.3.mlp.experts.7.w1") == 3 and layer_of("lm_head") == 0
