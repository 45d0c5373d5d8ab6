"""`loractl eval` against an independent count in plain transformers, row for row."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loractl.cli.main import main
from loractl.engine import evaluate
from loractl.models import objective
from tests.tiny import TEXT, chat_rows, write_jsonl

Make = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "heldout.jsonl", chat_rows(7))


@pytest.fixture
def general(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "general.jsonl", [{"text": text} for text in TEXT * 2])


def evaluated(capsys: Captured, *words: str) -> list[dict[str, Any]]:
    assert main(["eval", *words, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def counted(model: Any, directory: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses of answers and greedy answers, one row at a time, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    found = []
    for row in rows:
        messages = row["messages"]
        prompt = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, tokenize=False
        )
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        end = ids.index(tokenizer.eos_token_id, len(asked)) + 1
        labels = [-100] * len(asked) + ids[len(asked) : end] + [-100] * (len(ids) - end)
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
            out = model.generate(
                torch.tensor([asked]),
                attention_mask=torch.ones(1, len(asked), dtype=torch.int64),
                max_new_tokens=8,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        tokens = end - len(asked)
        answer = tokenizer.decode(out[0, len(asked) :], skip_special_tokens=True)
        found.append({"loss_sum": float(loss) * tokens, "tokens": tokens, "answer": answer})
    return found


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_every_row_agrees_with_an_independent_count(
    base: Make, adapter_dir: Make, peft_model: Callable[..., Any], held_out: Path,
    capsys: Captured, tmp_path: Path,
) -> None:  # fmt: skip
    adapter = adapter_dir(base("llama"))
    found = evaluated(
        capsys, f"tuned={adapter}", "--data", str(held_out), "--dtype", "float32",
        "--max-new-tokens", "8", "--rows", str(tmp_path / "rows.jsonl"),
    )  # fmt: skip
    assert [one["model"] for one in found] == ["base", "tuned"]
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()]
    plain = AutoModelForCausalLM.from_pretrained(base("llama"), dtype=torch.float32)
    for one, model in zip(found, (plain, peft_model(base("llama"), adapter)), strict=True):
        ours = [line for line in lines if line["model"] == one["model"]]
        theirs = counted(model, base("llama"), chat_rows(7))
        assert [line["row"] for line in ours] == list(range(1, 8))
        for line, row in zip(ours, theirs, strict=True):
            assert line["tokens"] == row["tokens"] and line["answer"] == row["answer"]
            assert line["loss_sum"] == pytest.approx(row["loss_sum"], rel=1e-4)
        mean = sum(r["loss_sum"] for r in theirs) / sum(r["tokens"] for r in theirs)
        assert one["loss"]["value"] == pytest.approx(mean, rel=1e-4)
        assert one["perplexity"]["value"] == pytest.approx(math.exp(mean), rel=1e-4)
        assert one["loss"]["low"] < one["loss"]["value"] < one["loss"]["high"]


@pytest.mark.parametrize(("name", "is_fast"), [("llama", True), ("gpt2", False)])
def test_losses_come_without_all_logits_and_by_fast_layers_where_there_are_any(
    name: str, is_fast: bool, base: Make, adapter_dir: Make, held_out: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Captured,
) -> None:  # fmt: skip
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("all logits at once")

    ways: list[str] = []

    class Told(evaluate.Trunk):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            ways.append(self.fallback_reason)

    monkeypatch.setattr(objective, "trained_logits", refused)
    monkeypatch.setattr(evaluate, "Trunk", Told)
    words = [f"tuned={adapter_dir(base(name))}", "--data", str(held_out), "--metrics"]
    found = evaluated(capsys, *words, "loss")
    assert [one["model"] for one in found] == ["base", "tuned"]
    assert [not way for way in ways] == [is_fast, is_fast], ways
    evaluated(capsys, *words, "contains", "--max-new-tokens", "2")
    assert len(ways) == 2, "proven although no loss is asked for"


def test_base_adapter_and_full_fine_tuning_stand_in_one_table_with_what_was_forgotten(
    base: Make, adapter_dir: Make, config_file: Make, held_out: Path, general: Path,
    capsys: Captured, tmp_path: Path,
) -> None:  # fmt: skip
    path = config_file("method: full", "train: {steps: 2, learning_rate: 0.001}")
    assert main(["train", str(path)]) == 0
    capsys.readouterr()
    words = [f"lora={adapter_dir(base('llama'))}", f"full={tmp_path / 'run'}"]
    words += ["--data", str(held_out), "--retain", str(general), "--metrics", "loss"]
    words += ["--dtype", "float32"]
    found = evaluated(capsys, *words)
    assert [one["model"] for one in found] == ["base", "lora", "full"]
    assert found[0]["forgetting"]["value"] == 0.0
    for one in found[1:]:
        rise = one["retain_loss"]["value"] - found[0]["retain_loss"]["value"]
        assert one["forgetting"]["value"] == pytest.approx(rise, abs=1e-9) and rise != 0.0
        assert one["forgetting"]["low"] <= rise <= one["forgetting"]["high"]
    assert main(["eval", *words]) == 0
    said = capsys.readouterr()
    assert said.out.split()[:4] == ["model", "loss", "retain", "loss"]
    assert "7 rows and 10 of general text; brackets show 95% confidence intervals" in said.err


def test_answers_are_counted_by_every_metric(
    base: Make, adapter_dir: Make, held_out: Path, capsys: Captured
) -> None:
    found = evaluated(
        capsys, str(adapter_dir(base("llama"))), "--data", str(held_out), "--regex", "^",
        "--metrics", "exact_match,contains,json_match,regex", "--max-new-tokens", "4",
    )  # fmt: skip
    assert found[1]["model"] == "adapter"
    assert found[1]["regex"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found[1]["exact_match"]["value"] == found[1]["json_match"]["value"] == 0.0


def test_a_row_is_judged_by_its_last_answer_and_one_without_any_is_left_out(
    base: Make, adapter_dir: Make, held_out: Path, tmp_path: Path, capsys: Captured
) -> None:
    rows = [json.loads(line) for line in held_out.read_text().splitlines()][:3]
    thanks = {"role": "user", "content": "Thanks!"}
    more = [{"messages": [*row["messages"], thanks]} for row in rows]
    more.insert(1, {"messages": [*rows[0]["messages"][:-1], thanks]})
    words = [str(adapter_dir(base("llama"))), "--metrics", "loss,exact_match,regex", "--regex", "^"]
    words += ["--max-new-tokens", "4"]
    written = {}
    for name, some in (("plain", rows), ("more", more)):
        data = write_jsonl(tmp_path / f"{name}.jsonl", some)
        out = tmp_path / f"{name}-rows.jsonl"
        assert main(["eval", *words, "--data", str(data), "--rows", str(out), "--json"]) == 0
        said = capsys.readouterr()
        assert said.err.count("1 row without a trained answer left out") == (name == "more")
        assert [one["regex"]["value"] for one in json.loads(said.out)] == [1.0, 1.0]
        read = map(json.loads, out.read_text().splitlines())
        written[name] = [(r["answer"], r["expected"]) for r in read if "answer" in r]
    assert written["plain"] == written["more"] and len(written["more"]) == 6


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--metrics", "accuracy"], ["'accuracy'", "loss, perplexity, exact_match"]),
        (["--metrics", "regex"], ["--regex PATTERN and the metric regex must be given together"]),
        (
            ["--metrics", "regex", "--regex", "("],
            ["--regex: found '('", "not a valid regular expression"],
        ),
        (["--retain", "nowhere.jsonl"], ["--retain: nowhere.jsonl does not exist"]),
        (["--dtype", "foo"], ["--dtype: found 'foo'", "auto, float32, bfloat16, float16"]),
        (["--dtype", "bf16"], ["--dtype: found 'bf16'"]),
        (["--metrics", ""], ["--metrics: found ''"]),
        (["--metrics", "los"], ["--metrics: found 'los'", "did you mean loss"]),
        (
            ["--rows", "absent/rows.jsonl"],
            ["--rows: absent/rows.jsonl is not in an existing directory"],
        ),
    ],
)
def test_wrong_flags_are_refused(
    flags: list[str], words: list[str], held_out: Path, capsys: Captured
) -> None:
    assert main(["eval", "nowhere", "--data", str(held_out), *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error:") and all(word in err for word in words), err


def test_text_without_answers_has_losses_alone(
    base: Make, adapter_dir: Make, general: Path, capsys: Captured
) -> None:
    adapter = adapter_dir(base("llama"))
    assert main(["eval", str(adapter), "--data", str(general)]) == 2
    assert "not conversations that end with an answer" in capsys.readouterr().err
    found = evaluated(capsys, str(adapter), "--data", str(general), "--metrics", "loss")
    assert found[0]["rows"] == len(TEXT * 2)


def test_general_text_is_measured_while_training(
    config_file: Make, general: Path, held_out: Path, tmp_path: Path
) -> None:
    data = f"data: {{retain: {general}, eval: {held_out}}}"
    path = config_file(data, "train: {steps: 4, eval_every: 2}")
    assert main(["train", str(path)]) == 0
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    measured = [line for line in lines if "retain_loss" in line]
    assert [line["step"] for line in measured] == [0, 2, 4]
    assert all("eval_loss" in line for line in measured)
    words = ["--data", str(held_out), "--retain", str(general), "--metrics", "loss", "--json"]
    assert main(["eval", str(tmp_path / "run"), "--dtype", "float32", *words]) == 0


def test_the_curve_of_general_text_is_the_figure_of_eval(
    config_file: Make, general: Path, capsys: Captured, tmp_path: Path
) -> None:
    path = config_file(f"data: {{retain: {general}}}", "train: {steps: 3}")
    assert main(["train", str(path)]) == 0
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    curve = [line["retain_loss"] for line in lines if "retain_loss" in line]
    capsys.readouterr()
    words = ["--data", str(general), "--retain", str(general), "--metrics", "loss"]
    found = evaluated(capsys, str(tmp_path / "run"), "--dtype", "float32", *words)
    assert [one["retain_loss"]["value"] for one in found] == pytest.approx(curve, rel=1e-5)


def test_columns_of_another_name_are_read_as_the_fields_they_stand_for(
    base: Make, adapter_dir: Make, tmp_path: Path, capsys: Captured
) -> None:
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(4)]
    ours = write_jsonl(tmp_path / "ours.jsonl", rows)
    theirs = [{"Frage": row["prompt"], "Antwort": row["completion"]} for row in rows]
    foreign = write_jsonl(tmp_path / "theirs.jsonl", theirs)
    words = [str(adapter_dir(base("llama"))), "--metrics", "loss", "--dtype", "float32", "--data"]
    assert main(["eval", *words, str(foreign)]) == 2
    named = ["--columns", "prompt=Frage", "--columns", "completion=Antwort"]
    assert evaluated(capsys, *words, str(foreign), *named) == evaluated(capsys, *words, str(ours))
