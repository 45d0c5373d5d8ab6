"""`loractl train`, run whole: what it writes."""

import gc
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from loractl.cli.main import main
from tests.commands.conftest import Capture, Config
from tests.runs import rows_of, timeless, train, tree
from tests.sweeps import sampled
from tests.tiny import ARCHITECTURES, write_jsonl


def test_a_run_directory_holds_what_the_contract_names(config_file: Config, tmp_path: Path) -> None:
    assert train(config_file("train: {report: true}")) == 0
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.jsonl", "data.json", "checkpoints", "adapter", "report.html",
        "report.json",
    }  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-000002", "step-000004"
    ]  # fmt: skip
    for saved in (run / "checkpoints").iterdir():
        assert {path.name for path in saved.iterdir()} >= {
            "adapter_model.safetensors",
            "adapter_config.json",
            "optimizer.safetensors",
            "state.json",
            "manifest.json",
        }
    assert {path.name for path in (run / "adapter").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "loractl.json", "chat_template.jinja"
    }  # fmt: skip
    about = json.loads((run / "adapter" / "loractl.json").read_text())
    assert {"loractl", "base", "data", "versions"} <= about.keys()
    account = json.loads((run / "data.json").read_text())["train"]
    assert (account["rows"], account["examples"], account["format"]) == (12, 12, "messages")
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in run.rglob("*") if path.is_file()} == {
        0o666 & ~mask
    }


def test_the_search_for_garbage_is_as_it_was_after_a_run(
    config_file: Config, tmp_path: Path
) -> None:
    frozen = gc.get_freeze_count()
    assert train(config_file()) == 0
    assert gc.isenabled() and gc.get_freeze_count() == frozen
    absent = config_file("lora: {target_modules: [absent]}")
    assert train(absent, "--out", str(tmp_path / "other")) == 2
    assert gc.isenabled() and gc.get_freeze_count() == frozen


def test_metrics_have_a_row_a_step_with_the_keys_of_the_contract(
    config_file: Config, tmp_path: Path
) -> None:
    assert train(config_file()) == 0
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row.keys() >= {
            "step",
            "epoch",
            "loss",
            "lr",
            "grad_norm",
            "tokens",
            "tokens_per_s",
            "peak_memory_bytes",
        }
        assert all(isinstance(row[key], int | float) and row[key] > 0 for key in row)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_config_of_a_run_has_every_key_and_gives_the_same_run(
    config_file: Config, tmp_path: Path
) -> None:
    assert train(config_file(), "--set", "lora.rank=2", "--set", "train.learning_rate=1e-3") == 0
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["lora"]["rank"] == 2 and resolved["lora"]["alpha"] == 4
    assert resolved["train"]["learning_rate"] == 1e-3 and resolved["seed"] == 0
    again = shutil.copy(tmp_path / "run" / "config.yaml", tmp_path / "again.yaml")
    assert train(Path(again), "--out", str(tmp_path / "other")) == 0
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_the_same_config_gives_the_same_bytes_and_another_seed_others(
    config_file: Config, tmp_path: Path
) -> None:
    config = config_file("lora: {dropout: 0.1}")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train(config, "--out", str(tmp_path / name), "--set", f"seed={seed}") == 0
    a, b, c = (tree(tmp_path / name / "adapter")["adapter_model.safetensors"] for name in "abc")
    assert a == b != c
    assert timeless(tmp_path / "a") == timeless(tmp_path / "b")


@pytest.mark.parametrize(
    "architecture", sampled(ARCHITECTURES, "llama-tied", "gemma3", "opt", "mixtral", "gpt2")
)
def test_every_architecture_trains_merges_and_answers(
    architecture: str, base: Any, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    packing = "data: {packing: false}" if architecture == "opt" else "data: {packing: true}"
    assert train(config_file(packing, "train: {steps: 2}", model=base(architecture))) == 0
    run, out = str(tmp_path / "run"), str(tmp_path / "merged")
    assert main(["merge", run, "--out", out]) == 0
    capsys.readouterr()
    ask = [
        "generate",
        "--prompt",
        "What is 2 plus 2?",
        "--max-new-tokens",
        "4",
        "--dtype",
        "float32",
    ]
    assert main([*ask, "--adapter", f"tuned={run}"]) == 0
    tuned = capsys.readouterr().out
    assert main([*ask, "--model", out]) == 0
    assert capsys.readouterr().out == tuned


def test_a_model_that_leaks_between_packed_examples_is_refused_before_anything_is_written(
    base: Any, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    assert train(config_file(model=base("opt"))) == 2
    assert "set data.packing to false" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


ROWS: dict[str, list[dict[str, object]]] = {
    "alpaca": [{"instruction": f"Say {i}.", "input": "x" * i, "output": f"{i}"} for i in range(6)],
    "prompt-completion": [{"prompt": f"Say {i}.", "completion": f" {i}"} for i in range(6)],
    "text": [{"text": f"{i} plus {i} is {2 * i}."} for i in range(6)],
}


@pytest.mark.parametrize("format", ROWS)
@pytest.mark.parametrize("named", [True, False])
def test_every_format_of_rows_trains_named_or_seen(
    format: str, named: bool, config_file: Config, train_file: Path, tmp_path: Path
) -> None:
    write_jsonl(train_file, ROWS[format])
    config = config_file("train: {steps: 1}", f"data: {{format: {format if named else 'auto'}}}")
    assert train(config) == 0
    account = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    assert account["format"] == format and account["examples"] == 6


def test_padded_and_packed_runs_of_one_window_take_the_same_step(
    config_file: Config, tmp_path: Path
) -> None:
    losses = []
    for packing in (True, False):
        out = tmp_path / str(packing)
        config = config_file("train: {steps: 1, batch_size: 12}", f"data: {{packing: {packing}}}")
        assert train(config, "--out", str(out)) == 0
        losses.append(rows_of(out)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_bom_crlf_and_blank_lines_change_no_loss(
    config_file: Config, train_file: Path, tmp_path: Path
) -> None:
    assert train(config_file(), "--out", str(tmp_path / "clean")) == 0
    text = train_file.read_bytes().replace(b"\n", b"\r\n")
    train_file.write_bytes(b"\xef\xbb\xbf" + text + b"\r\n\r\n")
    assert train(config_file(), "--out", str(tmp_path / "odd")) == 0
    assert timeless(tmp_path / "clean") == timeless(tmp_path / "odd")


def test_a_run_with_gradient_checkpointing_has_the_same_bytes(
    config_file: Config, tmp_path: Path
) -> None:
    for value in ("true", "false"):
        config = config_file(f"train: {{gradient_checkpointing: {value}, steps: 2}}")
        assert train(config, "--out", str(tmp_path / value)) == 0
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "true" / name).read_bytes() == (tmp_path / "false" / name).read_bytes()


def test_rows_longer_than_the_models_positions_are_told_by_them(
    base: Any, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    """GPT-2 has no position beyond its 512th: rows packed longer than that would crash it."""
    config = config_file("data: {max_length: 1024}", "train: {steps: 1}", model=base("gpt2"))
    assert train(config) == 0
    assert "the model has 512 positions; 512 is used" in capsys.readouterr().err
