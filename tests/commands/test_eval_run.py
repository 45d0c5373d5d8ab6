"""`loractl eval RUN` without --data: the run's own held-out rows, columns and dtype, so that the
loss is the one that training printed; and from any directory."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from loractl.cli.main import main
from tests.runs import rows_of
from tests.tiny import chat_rows, write_jsonl

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
LOSS = ("--metrics", "loss", "--json")
STEPS = "train: {steps: 3, batch_size: 2, learning_rate: 0.01}"


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "heldout.jsonl", chat_rows(9))


def evaluated(capsys: Capture, *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["eval", *words]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def losses_of(run: Path) -> list[float]:
    """The held-out losses that a run wrote: before training, and at its end."""
    found = [row["eval_loss"] for row in rows_of(run) if "eval_loss" in row]
    return [found[0], found[-1]]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_in_float32_the_loss_is_the_one_of_training(
    architecture: str, packing: bool, base: Make, config_file: Make, held_out: Path,
    capsys: Capture, tmp_path: Path,
) -> None:  # fmt: skip
    data = f"data: {{eval: {held_out}, packing: {str(packing).lower()}}}"
    assert main(["train", str(config_file(data, STEPS, model=base(architecture)))]) == 0
    found = evaluated(capsys, str(tmp_path / "run"), *LOSS)
    expected = losses_of(tmp_path / "run")
    assert [one["loss"]["value"] for one in found] == pytest.approx(expected, abs=1e-6)
    assert found[0]["rows"] == 9 and expected[0] != expected[1]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_in_bfloat16_the_loss_is_the_one_that_training_printed(
    architecture: str, base: Make, config_file: Make, held_out: Path,
    capsys: Capture, tmp_path: Path,
) -> None:  # fmt: skip
    data = f"data: {{eval: {held_out}}}"
    path = config_file(data, STEPS, "model: {dtype: bfloat16}", model=base(architecture))
    assert main(["train", str(path)]) == 0
    said = capsys.readouterr().err
    printed = re.findall(r"step \d+: held-out loss ([\d.]+)", said)
    found = evaluated(capsys, str(tmp_path / "run"), *LOSS)
    assert [f"{one['loss']['value']:.4f}" for one in found] == [printed[0], printed[-1]]


def test_a_share_of_the_rows_with_columns_of_other_names_is_found_again(
    config_file: Make, capsys: Capture, tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = [{"q": f"Is it {i}?", "a": f"{i} it is"} for i in range(40)]
    source = write_jsonl(tmp_path / "foreign.jsonl", rows)
    data = f"data: {{train: {source}, eval: 0.3, columns: {{prompt: q, completion: a}}}}"
    assert main(["train", str(config_file(data, STEPS))]) == 0
    found = evaluated(capsys, str(tmp_path / "run"), *LOSS)
    expected = losses_of(tmp_path / "run")
    assert [one["loss"]["value"] for one in found] == pytest.approx(expected, abs=1e-6)
    account = json.loads((tmp_path / "run" / "data.json").read_text())["eval"]
    assert found[0]["rows"] == account["rows"] < 40


def test_held_out_rows_of_several_files_are_known_by_file_and_line(
    config_file: Make, held_out: Path, capsys: Capture, tmp_path: Path
) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", chat_rows(5)[3:])
    data = f"data: {{eval: [{{path: {held_out}}}, {{path: {other}}}]}}"
    assert main(["train", str(config_file(data, STEPS))]) == 0
    rows = tmp_path / "rows.jsonl"
    found = evaluated(capsys, str(tmp_path / "run"), *LOSS, "--rows", str(rows))
    assert [one["loss"]["value"] for one in found] == pytest.approx(
        losses_of(tmp_path / "run"), abs=1e-6
    )
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [line["row"] for line in lines[9:11]] == [f"{other}:1", f"{other}:2"]
    assert all("loss_sum" in line for line in lines)


def test_an_adapter_a_checkpoint_and_a_run_mean_the_same_rows(
    config_file: Make, held_out: Path, capsys: Capture, tmp_path: Path
) -> None:
    assert main(["train", str(config_file(f"data: {{eval: {held_out}}}", STEPS))]) == 0
    run = tmp_path / "run"
    places = {"run": run, "adapter": run / "adapter", "last": run / "checkpoints" / "step-000003"}
    found = evaluated(capsys, *[f"{name}={place}" for name, place in places.items()], *LOSS)
    values = {one["loss"]["value"] for one in found[1:]}
    assert len(found) == 4 and len(values) == 1


def test_runs_on_different_rows_and_paths_without_a_run_need_the_data_named(
    config_file: Make, base: Make, adapter_dir: Make, held_out: Path, capsys: Capture,
    tmp_path: Path,
) -> None:  # fmt: skip
    other = write_jsonl(tmp_path / "other.jsonl", chat_rows(5))
    for name, source in (("one", held_out), ("two", other)):
        path = config_file(f"data: {{eval: {source}}}", "train: {steps: 1}")
        assert main(["train", str(path), "--out", str(tmp_path / name)]) == 0
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(["eval", *runs, *LOSS]) == 2
    assert "held out different rows; give --data FILE" in capsys.readouterr().err
    assert main(["eval", str(adapter_dir(base("llama"))), *LOSS]) == 2
    assert "give --data FILE" in capsys.readouterr().err
    assert main(["train", str(config_file("train: {steps: 1}"))]) == 0
    assert main(["eval", str(tmp_path / "run"), *LOSS]) == 2
    assert "held out no rows (data.eval is not set)" in capsys.readouterr().err


def test_rows_that_changed_since_are_measured_with_a_note(
    config_file: Make, held_out: Path, capsys: Capture, tmp_path: Path
) -> None:
    assert (
        main(["train", str(config_file(f"data: {{eval: {held_out}}}", "train: {steps: 1}"))]) == 0
    )
    assert main(["eval", str(tmp_path / "run"), *LOSS]) == 0
    assert "changed since" not in capsys.readouterr().err
    write_jsonl(held_out, chat_rows(4))
    assert main(["eval", str(tmp_path / "run"), *LOSS]) == 0
    note = f"note: {held_out} has changed since the run read it"
    assert capsys.readouterr().err.count(note) == 1  # although the base reads it as well


@pytest.mark.parametrize("is_old", [False, True])
def test_a_run_works_from_any_directory(
    is_old: bool, config_file: Make, base: Make, held_out: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """Everything named relative to the directory it was started in; older adapters kept that."""
    (tmp_path / "model").symlink_to(base("llama"))
    config = yaml.safe_load(config_file(STEPS).read_text())
    config["model"]["name_or_path"] = "model"
    config["data"] |= {"train": "train.jsonl", "eval": held_out.name}
    config["out"] = "runs/name"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "config.yaml"]) == 0
    run = tmp_path / "runs" / "name"
    settings = run / "adapter" / "adapter_config.json"
    named = json.loads(settings.read_text())
    about = json.loads((run / "adapter" / "loractl.json").read_text())
    assert named["base_model_name_or_path"] == str(tmp_path / "model")
    assert about["base"]["name_or_path"] == str(tmp_path / "model")
    accounts = json.loads((run / "data.json").read_text())
    assert accounts["eval"]["path"] == str(held_out)
    if is_old:
        settings.write_text(json.dumps({**named, "base_model_name_or_path": "model"}))
        accounts["eval"]["path"] = held_out.name
        (run / "data.json").write_text(json.dumps(accounts))
    elsewhere = tmp_path / "some" / "where"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    found = evaluated(capsys, "../../runs/name", *LOSS)
    assert [one["loss"]["value"] for one in found] == pytest.approx(losses_of(run), abs=1e-6)
    generate = ["generate", "--adapter", str(run), "--prompt", "hi", "--max-new-tokens", "1"]
    assert main(generate) == 0
    assert main(["merge", str(run), "--out", "merged", "--no-verify"]) == 0


def conversation(number: int) -> dict[str, Any]:
    """Two answers with reasoning, of different length, and a last one that is not trained."""
    turns: list[dict[str, Any]] = []
    for n, words in enumerate(("add them", "take it twice " * (number % 3 + 1), "no")):
        content = f"<think>\n{words}\n</think>\n\n{n} and {number}"
        turns += [
            {"role": "user", "content": f"{number} plus {n}?"},
            {"role": "assistant", "content": content, "weight": 0 if n == 2 else 1},
        ]
    return {"messages": turns}


@pytest.mark.parametrize("setting", ["split_turns: true", "thoughts: drop", "train_on: all"])
def test_a_file_is_read_as_the_run_read_its_rows(
    setting: str, config_file: Make, capsys: Capture, tmp_path: Path
) -> None:
    rows = write_jsonl(tmp_path / "turns.jsonl", [conversation(n) for n in range(4)])
    data = f"data: {{train: {rows}, eval: {rows}, {setting}}}"
    assert main(["train", str(config_file(data, "train: {steps: 1, batch_size: 2}"))]) == 0
    run, answers = tmp_path / "run", ("--metrics", "loss,contains", "--max-new-tokens", "2")
    expected, read = losses_of(run), []
    for number, source in enumerate([(), ("--data", str(rows))]):
        out = tmp_path / f"{number}.jsonl"
        found = evaluated(capsys, str(run), *source, *answers, "--rows", str(out), "--json")
        assert [one["loss"]["value"] for one in found] == pytest.approx(expected, abs=1e-6)
        assert found[0]["rows"] == 4
        read.append([json.loads(line) for line in out.read_text().splitlines()])
    for ours, theirs in zip(*read, strict=True):
        assert ours.keys() == theirs.keys() and ours["expected"] == theirs["expected"]
        assert ours.get("loss_sum", 0) == pytest.approx(theirs.get("loss_sum", 0), rel=1e-5)
    of_base = [line for line in read[0] if line["model"] == "base"]
    each = 2 if "split" in setting else 1
    assert [line["row"] for line in of_base] == [n // each + 1 for n in range(4 * each)]
    assert all("no" not in line["expected"] for line in of_base), "its answer is not trained"
    assert ("<think>" in of_base[0]["expected"]) == ("drop" not in setting)
    total = sum(line.get("loss_sum", 0) for line in of_base)
    assert total / sum(line.get("tokens", 0) for line in of_base) == pytest.approx(expected[0])


def test_runs_that_took_other_parts_of_rows_are_measured_as_the_first_with_a_note(
    config_file: Make, held_out: Path, capsys: Capture, tmp_path: Path
) -> None:
    for name, setting in (("one", "thoughts: drop"), ("two", "split_turns: true")):
        path = config_file(f"data: {{eval: {held_out}, {setting}}}", "train: {steps: 1}")
        assert main(["train", str(path), "--out", str(tmp_path / name)]) == 0
    about = tmp_path / "two" / "adapter" / "loractl.json"
    kept = json.loads(about.read_text())
    assert kept.pop("rows") == {"train_on": "assistant", "thoughts": "auto", "split_turns": True}
    about.write_text(json.dumps(kept))  # as older versions wrote it: the config says it too
    runs, said = [str(tmp_path / "one"), str(tmp_path / "two")], []
    for source in ((), ("--data", str(held_out))):
        assert main(["eval", *runs, *source, *LOSS]) == 0
        said.append(capsys.readouterr().err)
    note = f"{runs[1]} was trained with data.thoughts: auto, not drop, data.split_turns: true, not"
    note += f" false; the rows are read as {runs[0]} read its own"
    assert [one.count(note) for one in said] == [1, 1]
