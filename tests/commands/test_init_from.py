"""`loractl init --from`: another tool's config becomes one that check accepts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.cli.main import main
from loractl.config.loader import load
from tests.commands.conftest import assert_refused, said
from tests.config.imports.examples import EXAMPLES
from tests.tiny import CHATML, chat_rows, write_jsonl

Base = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
QUICK = [("LLaMA-Factory", "lora-sft"), ("axolotl", "full"), ("PEFT", "adalora")]


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_jsonl(Path("rows.jsonl"), chat_rows(48))


def check_converted(example: tuple[str, str], base: Path, capsys: Capture) -> None:
    Path("theirs.yaml").write_text(EXAMPLES[example], "utf-8")
    Path("own").mkdir()  # the folder of a template that one of them names
    Path("own/template.jinja").write_text(CHATML)
    asked = ["--model", str(base), "--data", "rows.jsonl", "--out", "ours.yaml"]
    assert main(["init", "--from", "theirs.yaml", *asked]) == 0
    capsys.readouterr()
    assert main(["check", "ours.yaml", "--json"]) == 0, capsys.readouterr().err
    assert said(capsys)["ok"]


@pytest.mark.parametrize("example", QUICK, ids=str)
def test_some_examples_pass_check(example: tuple[str, str], base: Base, capsys: Capture) -> None:
    check_converted(example, base("llama"), capsys)


def test_the_columns_of_other_rows_can_be_named(capsys: Capture, base: Base) -> None:
    Path("theirs.yaml").write_text(EXAMPLES["LLaMA-Factory", "lora-sft"], "utf-8")
    write_jsonl(
        Path("wiki.jsonl"), [{"title": f"Town {i}", "text": f"By river {i}."} for i in "ab"]
    )
    asked = ["init", "--from", "theirs.yaml", "--model", str(base("llama")), "--out", "a.yaml"]
    assert main([*asked, "--data", "wiki.jsonl"]) == 2
    assert_refused(capsys, "found text in text and title", "--columns text=text")
    assert main([*asked, "--columns", "text=text"]) == 2
    assert_refused(capsys, "--columns: set without --data")
    assert main([*asked, "--data", "wiki.jsonl", "--columns", "text=text"]) == 0
    assert load(Path("a.yaml")).config.data.columns == {"text": "text"}


@pytest.mark.slow
@pytest.mark.parametrize("example", [one for one in EXAMPLES if one not in QUICK], ids=str)
def test_every_example_passes_check(example: tuple[str, str], base: Base, capsys: Capture) -> None:
    check_converted(example, base("llama"), capsys)


def test_every_key_is_commented_and_the_rest_is_listed_in_the_file_and_on_stderr(
    capsys: Capture, base: Base
) -> None:
    Path("theirs.yaml").write_text(EXAMPLES["LLaMA-Factory", "lora-sft"], "utf-8")
    asked = ["--model", str(base("llama")), "--data", "rows.jsonl"]
    assert main(["init", "--from", "theirs.yaml", *asked, "--out", "-"]) == 0
    out, err = capsys.readouterr()
    for text in (out, err):
        assert "max_samples: all rows are used: cut the file instead" in text
    lines = out.splitlines()
    for number, line in enumerate(lines):
        explained = "  # " in line or lines[number - 1].lstrip().startswith("#")
        assert not line or line.startswith("#") or line.endswith(":") or explained, line
    assert "  learning_rate: 1e-4  # learning_rate: peak learning rate of the schedule" in lines


def test_a_quantized_config_gives_a_quantized_run() -> None:
    Path("theirs.yaml").write_text(EXAMPLES["axolotl", "qlora-sharegpt"], "utf-8")
    assert main(["init", "--from", "theirs.yaml", "--out", "ours.yaml"]) == 0
    assert load(Path("ours.yaml"), paths_exist=False).config.model.quantization == "nf4-double"


def test_more_warmup_than_steps_becomes_a_share(base: Base) -> None:
    Path("theirs.yaml").write_text(EXAMPLES["axolotl", "full"], "utf-8")
    asked = ["--model", str(base("llama")), "--data", "rows.jsonl", "--out", "ours.yaml"]
    assert main(["init", "--from", "theirs.yaml", *asked]) == 0
    assert load(Path("ours.yaml")).config.train.warmup == 0.1
    assert "warmup_steps: more than the run's steps" in Path("ours.yaml").read_text("utf-8")


def test_columns_of_the_given_data_are_found(base: Base) -> None:
    Path("theirs.yaml").write_text(EXAMPLES["TRL", "peft"], "utf-8")
    Path("own.csv").write_text("question,answer\n" + "How are you?,Fine thanks\n" * 4)
    asked = ["--model", str(base("llama")), "--data", "own.csv", "--out", "ours.yaml"]
    assert main(["init", "--from", "theirs.yaml", *asked]) == 0
    columns = load(Path("ours.yaml")).config.data.columns
    assert columns == {"prompt": "question", "completion": "answer"}


def test_an_adapters_config_gets_a_plan_of_training_from_the_rows(base: Base) -> None:
    Path("theirs.yaml").write_text(EXAMPLES["PEFT", "lora"], "utf-8")
    asked = ["--model", str(base("llama")), "--data", "rows.jsonl", "--out", "ours.yaml"]
    assert main(["init", "--from", "theirs.yaml", *asked]) == 0
    found = load(Path("ours.yaml")).config
    assert found.lora.rank == 16 and found.train.epochs and found.train.epochs >= 3
    assert isinstance(found.data.eval, float) and found.train.eval_every
    Path("adapter").mkdir()
    Path("theirs.yaml").rename("adapter/adapter_config.json")
    assert main(["init", "--from", "adapter", *asked[:-1], "same.yaml"]) == 0
    assert load(Path("same.yaml")).config.train == found.train


@pytest.mark.parametrize("is_there", [True, False])
def test_an_adapter_to_train_further_is_kept_without_its_own_settings(
    is_there: bool, base: Base, adapter_dir: Callable[..., Path], capsys: Capture
) -> None:
    start = adapter_dir(base("llama")) if is_there else Path("absent/adapter")
    Path("theirs.yaml").write_text(
        f"stage: sft\nadapter_name_or_path: {start}\nlora_rank: 3\nlora_target: all\n"
    )
    asked = ["--model", str(base("llama")), "--data", "rows.jsonl", "--out", "ours.yaml"]
    assert main(["init", "--from", "theirs.yaml", *asked]) == 0
    text, err = Path("ours.yaml").read_text("utf-8"), capsys.readouterr().err
    assert "its own rank, alpha and target modules count," in text
    found = load(Path("ours.yaml"), paths_exist=False)
    assert found.config.lora.start_from == str(start)
    assert not {"lora.rank", "lora.alpha", "lora.target_modules"} & found.explicit
    missing = f"{start} is not a directory here; put the adapter there"
    assert (f"note: theirs.yaml: adapter_name_or_path: {missing}" in err) is not is_there
    assert ("is not a directory here" in text) is not is_there
    assert main(["check", "ours.yaml"]) == (0 if is_there else 2)


def test_an_invalid_number_is_listed_and_the_config_passes_check(
    base: Base, capsys: Capture
) -> None:
    Path("theirs.yaml").write_text("base_model: b\nadapter: lora\nnum_epochs: -1\nseed: 3\n")
    asked = ["--model", str(base("llama")), "--data", "rows.jsonl", "--out", "ours.yaml"]
    assert main(["init", "--from", "theirs.yaml", *asked]) == 0
    told = "num_epochs: invalid: found -1, expected a number greater than 0"
    text = Path("ours.yaml").read_text("utf-8")
    assert told in text and told in capsys.readouterr().err
    assert "epochs: 1  # passes over the data; the default of axolotl" in text
    assert load(Path("ours.yaml")).config.train.epochs == 1


def test_more_warmup_than_max_steps_becomes_a_share(base: Base) -> None:
    Path("theirs.yaml").write_text("base_model: b\nmax_steps: 10\nwarmup_steps: 100\n")
    asked = ["--model", str(base("llama")), "--data", "rows.jsonl", "--out", "ours.yaml"]
    assert main(["init", "--from", "theirs.yaml", *asked]) == 0
    assert load(Path("ours.yaml")).config.train.warmup == 0.1
    assert "warmup_steps: more than max_steps" in Path("ours.yaml").read_text("utf-8")


def test_what_is_no_config_of_a_known_tool_is_refused(capsys: Capture) -> None:
    Path("theirs.yaml").write_text("stage: dpo\nmodel_name_or_path: x\n")
    assert main(["init", "--from", "theirs.yaml"]) == 2
    assert_refused(capsys, "theirs.yaml: stage: dpo is not available in this version")
    assert main(["init", "--from", "absent.yaml"]) == 2
    assert_refused(capsys, "absent.yaml: does not exist")
    assert main(["init", "--from", "theirs.yaml", "--template", "lora"]) == 2
    assert_refused(capsys, "--template: set together with --from")
    assert not Path("config.yaml").exists()
