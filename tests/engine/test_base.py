"""Every command means the same base: a run's model by the run, and the bytes trained on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.artifacts.peft.adapter import CONFIG
from loractl.cli.main import main

Make = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def run_dir(base: Make, tmp_path: Path) -> Path:
    """A run of method: full, as far as its model goes."""
    shutil.copytree(base("llama"), tmp_path / "full" / "model")
    return tmp_path / "full"


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "What is 1?", "completion": "1"}) + "\n")
    return rows


ON_A_RUN = {
    "merge": ["merge", "ADAPTER", "--base", "RUN", "--out", "OUT", "--no-verify"],
    "export": ["export", "ADAPTER", "--base", "RUN", "--to", "peft", "--out", "OUT"],
    "eval": ["eval", "ADAPTER", "--model", "RUN", "--data", "ROWS", "--metrics", "loss"],
    "generate": ["generate", "--model", "RUN", "--prompt", "hi", "--max-new-tokens", "1"],
    "estimate": ["estimate", "--model", "RUN"],
    "recommend": ["recommend", "--model", "RUN", "--task", "simple"],
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("command", ON_A_RUN)
def test_a_run_of_method_full_means_its_model(
    command: str, run_dir: Path, held_out: Path, base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    places = {"ADAPTER": adapter_dir(base("llama")), "RUN": run_dir, "OUT": tmp_path / "out"}
    places["ROWS"] = held_out
    assert main([str(places.get(word, word)) for word in ON_A_RUN[command]]) == 0


def test_a_run_stands_for_both_models_of_extract(
    run_dir: Path, capsys: Captured, tmp_path: Path
) -> None:
    command = ["adapters", "extract", "--base", str(run_dir), "--tuned", str(run_dir)]
    assert main([*command, "--rank", "2", "--out", str(tmp_path / "out")]) == 2
    assert "no tensor differs" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_a_base_of_other_bytes_is_refused_unless_it_is_named(
    command: str, base: Make, adapter_dir: Make, held_out: Path, capsys: Captured
) -> None:
    directory, other = adapter_dir(base("llama")), base("llama", seed=1)
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    asked = {
        "generate": ["--adapter", f"a={directory}", "--prompt", "hi", "--max-new-tokens", "1"],
        "eval": [str(directory), "--data", str(held_out), "--metrics", "loss"],
    }[command]
    assert main([command, *asked]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error:") and "differs from the base" in err and "--model" in err
    assert main([command, *asked, "--model", str(other)]) == 0
    assert "note: " in capsys.readouterr().err
