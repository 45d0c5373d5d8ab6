"""`loractl recommend`: its values, what it counts, and the config it writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from loractl.cli.main import main

Make = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


def recommend(capsys: Captured, *flags: str) -> dict[str, Any]:
    assert main(["recommend", *flags, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def values(found: dict[str, Any]) -> dict[str, Any]:
    return {key: one["value"] for key, one in found["choices"].items()}


def test_the_rank_follows_the_table_and_each_value_its_reason(capsys: Captured) -> None:
    flags = ("--task", "complex", "--model", "70B", "--data-size", "20k", "--memory", "80GB")
    found = recommend(capsys, *flags)
    got = values(found)
    assert (got["rank"], got["alpha"], got["target_modules"]) == (64, 128, "all-linear")
    assert got["method"] == "qlora" and got["batch_size"] * got["gradient_accumulation"] == 16
    assert all(one["reason"] and one["source"] for one in found["choices"].values())
    assert {fit["method"] for fit in found["search"]} == {"full", "lora", "qlora"}
    assert main(["recommend", *flags]) == 0
    out = capsys.readouterr().out
    assert "[this project's table" in out and "what fits in 80.00 GiB:" in out


def test_tokens_are_counted_with_the_models_own_tokenizer(
    base: Make, train_file: Path, tokenizer: Any, capsys: Captured
) -> None:
    model = str(base("llama"))
    found = recommend(capsys, "--task", "simple", "--model", model, "--data", str(train_file))
    rows = [json.loads(line) for line in train_file.read_text("utf-8").splitlines()]
    lengths = [
        sum(len(tokenizer(m["content"])["input_ids"]) + 6 for m in row["messages"]) for row in rows
    ]
    assert found["data"]["rows"] == len(rows) and found["data"]["tokens"] == sum(lengths)
    assert found["data"]["longest"] == max(lengths)
    assert values(found)["max_length"] >= max(lengths)
    assert "counted with the tokenizer" in found["data"]["counted"]


def test_for_a_bare_size_tokens_are_estimated_and_it_says_so(
    train_file: Path, capsys: Captured
) -> None:
    found = recommend(capsys, "--task", "simple", "--model", "7B", "--data", str(train_file))
    assert "estimated at 4 characters per token" in found["data"]["counted"]


@pytest.mark.parametrize("memory", [None, "8GB"])
def test_the_config_that_is_written_passes_check(
    memory: str | None, base: Make, train_file: Path, tmp_path: Path, capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recommended.yaml"
    flags = ["--task", "medium", "--model", str(base("llama")), "--data", str(train_file)]
    flags += ["--memory", memory, "--dtype", "float32"] if memory else []
    assert main(["recommend", *flags, "--write", str(path)]) == 0
    written = yaml.safe_load(path.read_text("utf-8"))
    assert (written["lora"]["rank"], written["lora"]["target_modules"]) == (4, "attention")
    assert path.read_text("utf-8").count("#") > 5
    assert main(["check", str(path)]) == 0
    capsys.readouterr()
    assert main(["recommend", *flags, "--write", str(path)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_qlora_is_shown_and_not_written(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "config.yaml"
    flags = ["--task", "complex", "--model", "13B", "--memory", "16GB", "--write", str(path)]
    assert main(["recommend", *flags]) == 0
    text = path.read_text("utf-8")
    assert "QLoRA would fit" in text and "quantization" not in text
    assert yaml.safe_load(text)["model"]["name_or_path"] == "meta-llama/Llama-2-13b-hf"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "hard", "--model", "7B"], "--task: found 'hard', expected one of simple"),
        (["--task", "simple", "--model", "9B"], "9B: no such directory"),
        (["--task", "simple", "--model", "7B", "--data-size", "many"], "expected a number such as"),
        (["--task", "simple", "--model", "7B", "--memory", "lots"], "expected a size such as 24GB"),
        (["--task", "simple", "--model", "7B", "--data", "absent.jsonl"], "absent.jsonl"),
        (["--task", "simple", "--model", "7B", "--data", "x", "--data-size", "5"], "remove one"),
        (["--task", "simple", "--model", "70B", "--memory", "4GB", "--write", "x.yaml"],
         "there is nothing to write"),
        (["--task", "simple", "--model", "7B", "--dtype", "int4"], "--dtype: found 'int4'"),
        (["--task", "simple", "--model", "7B", "--write", "absent/x.yaml"],
         "create it or choose another --write"),
        (["--task", "simple"], "Missing option"),
    ],
)  # fmt: skip
def test_what_cannot_be_recommended_is_refused_with_2(
    flags: list[str], message: str, capsys: Captured
) -> None:
    assert main(["recommend", *flags]) == 2
    assert message in capsys.readouterr().err
