"""Every command means the same base: a run's model by the run, and the bytes trained on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loractl.artifacts.peft.adapter import CONFIG
from loractl.cli.main import main
from loractl.engine.speakers import open_hub
from loractl.models.device import choose_device, choose_dtype

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


def told(about: Path, **changes: object) -> None:
    path = about / "loractl.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pointed(directory: Path, base: Path) -> None:
    """Let an adapter name another base."""
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))


ASK = ["--prompt", "hi", "--max-new-tokens", "1"]


@pytest.mark.parametrize("command", ["generate", "eval", "chat", "merge", "export"])
def test_other_weights_under_the_same_path_are_refused(
    command: str, base: Make, adapter_dir: Make, held_out: Path, capsys: Captured, tmp_path: Path
) -> None:
    where = tmp_path / "base"
    shutil.copytree(base("llama"), where)
    directory = adapter_dir(where)
    asked = {
        "generate": ["--adapter", str(directory), *ASK],
        "chat": ["--adapter", str(directory)],
        "eval": [str(directory), "--data", str(held_out), "--metrics", "loss"],
        "merge": [str(directory), "--out", str(tmp_path / "out")],
        "export": [str(directory), "--to", "peft", "--out", str(tmp_path / "out")],
    }[command]
    shutil.copyfile(base("llama", seed=1) / "model.safetensors", where / "model.safetensors")
    assert main([command, *asked]) == 2
    err = capsys.readouterr().err
    assert f"error: {where}: differs from the base that {directory} was trained on" in err


def test_two_paths_of_one_base_are_one_and_other_bases_are_listed(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    one, two = adapter_dir(base("llama"), "one"), adapter_dir(base("llama"), "two")
    (tmp_path / "link").symlink_to(base("llama"))
    pointed(two, tmp_path / "link")
    ask = [part for path in (one, two) for part in ("--adapter", str(path))]
    ask += ["--prompts", str(tmp_path / "asked.jsonl"), "--max-new-tokens", "1"]
    (tmp_path / "asked.jsonl").write_text('{"prompt": "hi", "adapter": "two"}\n')
    assert main(["generate", *ask]) == 0
    pointed(two, base("llama", seed=1))
    assert main(["generate", *ask]) == 2
    err = capsys.readouterr().err
    assert (
        f"error: the adapters name different bases: {base('llama')} for one,"
        f" {base('llama', seed=1)} for two; give --model" in err
    )


@pytest.mark.parametrize("name", ["../base", "base"])
def test_a_relative_base_of_anyones_adapter_is_found_beside_it(
    name: str, base: Make, adapter_dir: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "base").symlink_to(base("llama"))
    directory = adapter_dir(base("llama"))
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": name}))
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert main(["generate", "--adapter", str(directory), *ASK]) == 0


@pytest.mark.parametrize(
    ("recorded", "asked", "expected"),
    [
        (["bfloat16"], None, torch.bfloat16),
        (["bfloat16"], "float32", torch.float32),
        (["bfloat16", "bfloat16"], None, torch.bfloat16),
        (["bfloat16", "float32"], None, torch.float32),
        (["bfloat16", "float16"], None, torch.float32),
        (["float16"], None, torch.float16),
    ],
)
def test_a_base_is_loaded_in_the_dtype_that_was_trained_in(
    recorded: list[str], asked: str | None, expected: torch.dtype,
    base: Make, adapter_dir: Make, capsys: Captured,
) -> None:  # fmt: skip
    paths = {}
    for number, dtype in enumerate(recorded):
        paths[str(number)] = adapter_dir(base("llama"), f"adapter{number}")
        told(paths[str(number)], dtype=dtype)
    assert open_hub(None, paths, asked).model.dtype == expected
    is_mixed = asked is None and len(set(recorded)) > 1
    assert ("note: the adapters were trained in" in capsys.readouterr().err) == is_mixed


def test_an_adapter_that_tells_no_dtype_is_loaded_as_the_machine_likes(
    base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"))
    opened = open_hub(None, {"a": directory}, None)
    assert opened.model.dtype == choose_dtype("auto", choose_device())


def test_a_model_trained_whole_is_loaded_in_its_dtype(run_dir: Path) -> None:
    (run_dir / "model" / "loractl.json").write_text('{"dtype": "bfloat16"}')
    assert open_hub(str(run_dir), {}, None).model.dtype == torch.bfloat16
