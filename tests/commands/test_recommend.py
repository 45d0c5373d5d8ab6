"""`loractl recommend`: its values, what it counts, and the config it writes."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from loractl.cli.main import main
from tests.tiny import TEXT, write_jsonl

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


def test_tokens_are_counted_through_the_chat_template_as_check_counts_them(
    base: Make, train_file: Path, config_file: Make, capsys: Captured
) -> None:
    model = str(base("llama"))
    found = recommend(capsys, "--task", "simple", "--model", model, "--data", str(train_file))
    assert main(["check", str(config_file()), "--json"]) == 0
    account = json.loads(capsys.readouterr().out)["data"]["train"]
    assert found["data"]["rows"] == account["rows"] == account["examples"]
    assert found["data"]["tokens"] == account["tokens"]
    assert found["data"]["longest"] == account["longest"]
    assert values(found)["max_length"] >= account["longest"]
    assert "chat template of" in found["data"]["counted"]


def test_for_a_bare_size_tokens_are_estimated_and_it_says_so(
    train_file: Path, capsys: Captured
) -> None:
    found = recommend(capsys, "--task", "simple", "--model", "7B", "--data", str(train_file))
    assert "estimated at 4 characters per token" in found["data"]["counted"]


@pytest.mark.parametrize("n", [1, 9, 30])
def test_the_steps_of_a_few_rows_are_those_that_check_finds(
    n: int, base: Make, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, object]] = [
        {"prompt": f"Why {i}?", "completion": f"So {i}."} for i in range(n)
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = ["--task", "simple", "--model", str(base("llama")), "--data", str(data)]
    found = recommend(capsys, *flags, "--write", "new.yaml")
    said = re.search(r"([\d,]+) steps in all", found["choices"]["epochs"]["reason"])
    assert main(["check", "new.yaml", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert said is not None and int(said[1]) == report["estimate"]["steps"]


@pytest.mark.parametrize("model", ["7B", "llama"])
def test_rows_without_an_answer_are_refused_as_check_refuses_them(
    model: str, base: Make, config_file: Make, tmp_path: Path, capsys: Captured
) -> None:
    asked = {"messages": [{"role": "user", "content": "Are you there?"}]}
    data = write_jsonl(tmp_path / "asked.jsonl", [asked] * 3)
    assert main(["check", str(config_file(f"data: {{train: {data}}}"))]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "nothing to train on" in told
    named = model if model == "7B" else str(base(model))
    assert main(["recommend", "--task", "simple", "--model", named, "--data", str(data)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == told


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


def drawn_rows(rng: random.Random) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of a random layout and random lengths, and the columns that name their fields."""
    layout = rng.choice(["messages", "sharegpt", "prompt-completion", "columns", "text"])
    rows: list[dict[str, Any]] = []
    for number in range(rng.randint(3, 40)):
        asked = " ".join(rng.choices(TEXT, k=rng.choice([1, 1, 2, 3, 12])))
        answer = f"{number} {rng.choice(TEXT)}"
        turns = [("user", asked), ("assistant", answer)] * rng.randint(1, 2)
        rows.append({
            "messages": {"messages": [{"role": r, "content": t} for r, t in turns]},
            "sharegpt": {"conversations": [
                {"from": {"user": "human", "assistant": "gpt"}[r], "value": t} for r, t in turns
            ]},
            "prompt-completion": {"prompt": asked, "completion": answer},
            "columns": {"Frage": asked, "Antwort": answer},
            "text": {"text": asked},
        }[layout])  # fmt: skip
    names = {"prompt": "Frage", "completion": "Antwort"} if layout == "columns" else {}
    return rows, names


@pytest.mark.parametrize("seed", range(20))
def test_what_is_written_passes_check_for_random_models_data_and_memory(
    seed: int, base: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    rows, columns = drawn_rows(rng)
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    kinds = ["llama", "llama-tied", "mistral", "qwen3", "gemma3", "phi3", "opt", "gpt-neox", "gpt2"]
    flags = ["--task", rng.choice(["simple", "medium", "complex"]), "--data", str(data)]
    flags += ["--model", str(base(rng.choice(kinds)))]
    flags += [word for pair in columns.items() for word in ("--columns", "=".join(pair))]
    memory = rng.choice([None, "2GB", "8GB", "24GB", "80GB"])
    flags += ["--memory", memory, "--dtype", "float32"] if memory else []
    path = tmp_path / "recommended.yaml"
    assert main(["recommend", *flags, "--write", str(path)]) == 0
    assert main(["check", str(path)]) == 0


def test_rows_that_no_position_is_left_for_are_refused_before_a_config_is_written(
    base: Make, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "recommended.yaml"
    row = {"prompt": "Why? " * 600, "completion": "So."}
    data = write_jsonl(tmp_path / "long.jsonl", [row, row])
    flags = ["--task", "simple", "--data", str(data), "--model", str(base("llama"))]
    assert main(["recommend", *flags, "--write", str(path)]) == 2
    assert "is longer than the 512 positions" in capsys.readouterr().err and not path.exists()
    write_jsonl(data, [row, {"prompt": "Why?", "completion": "So."}])
    assert main(["recommend", *flags, "--write", str(path)]) == 0
    assert yaml.safe_load(path.read_text("utf-8"))["data"]["too_long"] == "drop"


def test_where_lora_fits_only_on_four_bits_the_config_asks_for_them(
    tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "config.yaml"
    flags = ["recommend", "--task", "complex", "--write", str(path)]
    assert main([*flags, "--model", "13B", "--memory", "16GB"]) == 0
    assert "fits only when quantized to 4 bits" in capsys.readouterr().out
    written = yaml.safe_load(path.read_text("utf-8"))
    assert written["method"] == "lora" and written["model"]["quantization"] == "nf4"


def test_where_nothing_fits_nothing_is_written_and_the_reason_is_given(
    tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "config.yaml"
    flags = ["recommend", "--task", "complex", "--model", "72B", "--memory", "1GB"]
    assert main([*flags, "--write", str(path)]) == 2
    err = capsys.readouterr().err
    assert "nothing fits in 1 GiB" in err and "LoRA fits none of the known smaller" in err
    assert not path.exists()


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
        (["--task", "simple"], "--model: not given, but required"),
        (["--task", "simple", "--model", "7B", "--columns", "prompt=q"], "add --data FILE"),
        (["--task", "simple", "--model", "7B", "--data", "x", "--columns", "prompt"],
         "--columns: found 'prompt', expected FIELD=COLUMN"),
        (["--task", "simple", "--model", "7B", "--data", "x", "--columns", "promt=q"],
         "did you mean prompt?"),
        (["--task", "simple", "--model", "7B", "--data", "x", "--columns", "text=a",
          "--columns", "text=b"], "--columns: text is given twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_recommended_is_refused_with_2(
    flags: list[str], message: str, capsys: Captured
) -> None:
    assert main(["recommend", *flags]) == 2
    assert message in capsys.readouterr().err
