"""`loractl init`: it opens the data, what it writes loads and checks, nothing is overwritten."""

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from loractl.commands import init
from loractl.commands.init import InitRequest
from loractl.config.loader import load
from loractl.config.settings import RunConfig
from loractl.errors import ConfigError, DataError, StorageError
from loractl.planning import first_model
from tests.commands.conftest import said
from tests.tiny import chat_rows, write_jsonl

Base = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def write(
    *templates: str, model: Any = None, data: str | None = None, out: str = "new.yaml"
) -> str:
    named = None if model is None else str(model)
    assert init.run(InitRequest(templates, named, data), Path(out)) == 0
    return Path(out).read_text("utf-8")


def config(out: str = "new.yaml") -> RunConfig:
    return load(Path(out)).config


def tickets(n: int = 60) -> str:
    with Path("tickets.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["nr", "Anfrage", "Team"])
        for i in range(n):
            writer.writerow(
                [f"A{i}", f"What is {i} plus {i}? The lazy dog.", ("cup", "fox")[i % 2]]
            )
    return "tickets.csv"


CALL = {"name": "f", "arguments": {"x": 1}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ROWS: dict[str, Callable[[int], dict[str, object]]] = {
    "classification": lambda i: {"prompt": f"Is {i} even?", "completion": ("yes", "no")[i % 2]},
    "chat": lambda i: chat_rows(i + 1)[i],
    "json-extraction": lambda i: {"prompt": f"{i} cups", "completion": f'{{"quantity": {i}}}'},
    "tool-calls": lambda i: {
        "tools": [TOOL],
        "messages": [{"role": "user", "content": f"f of {i}"},
                     {"role": "assistant", "content": str(CALL)}],
    },
    "continued-pretraining": lambda i: {"text": f"The quick brown fox number {i}. " * 9},
}  # fmt: skip


@pytest.mark.parametrize("method", init.METHODS)
@pytest.mark.parametrize("shape", init.SHAPES)
def test_the_config_of_every_template_loads_and_explains_every_key(
    method: str, shape: str, base: Base
) -> None:
    odd = "off: it's #1.jsonl"
    write_jsonl(Path(odd), [ROWS[shape](i) for i in range(30)])
    text = write(method, shape, model=base("llama"), data=odd)
    found = config()
    trained = "lora" if method == "qlora" else method
    assert (found.method, found.out, found.data.train) == (trained, "runs/new", odd)
    assert (found.model.quantization == "nf4-double") == (method == "qlora")
    lines = text.splitlines()
    for number, line in enumerate(lines):
        explained = "  # " in line or lines[number - 1].lstrip().startswith("#")
        assert not line or line.startswith("#") or line.endswith(":") or explained, line
        assert len(line) <= 100 or str(base("llama")) in line


@pytest.mark.parametrize("shape", init.SHAPES)
def test_the_shape_is_found_without_being_asked_for(shape: str, base: Base) -> None:
    write_jsonl(Path("rows.jsonl"), [ROWS[shape](i) for i in range(30)])
    asked = write(shape, model=base("llama"), data="rows.jsonl")
    assert write(model=base("llama"), data="rows.jsonl", out="b.yaml") == asked


@pytest.mark.parametrize("method", init.METHODS)
def test_check_accepts_the_config_of_a_method(method: str, base: Base, capsys: Capture) -> None:
    write(method, model=base("llama"), data=tickets())
    capsys.readouterr()
    assert main(["check", "new.yaml", "--json"]) == 0
    assert said(capsys)["ok"]


@pytest.mark.parametrize("shape", init.SHAPES)
def test_check_accepts_the_config_of_a_shape(shape: str, base: Base, capsys: Capture) -> None:
    write_jsonl(Path("rows.jsonl"), [ROWS[shape](i) for i in range(60)])
    write(shape, model=base("llama"), data="rows.jsonl")
    capsys.readouterr()
    assert main(["check", "new.yaml", "--json"]) == 0
    assert said(capsys)["ok"]


def test_check_finds_the_rows_the_steps_and_the_longest_row_that_init_promised(
    base: Base, capsys: Capture
) -> None:
    text = write(model=base("llama"), data=tickets(173))
    capsys.readouterr()
    assert main(["check", "new.yaml", "--json"]) == 0
    report = said(capsys)
    promised = re.search(r"the longest row has (\d+) tokens", text)
    assert promised and int(promised[1]) == max(one["longest"] for one in report["data"].values())
    steps = re.search(r"about (\d+) in all", text)
    assert steps and report["estimate"]["steps"] == int(steps[1]) >= 100
    assert 20 <= report["data"]["eval"]["rows"] <= 24


def test_columns_of_a_foreign_table_are_mapped_without_a_question(base: Base) -> None:
    text = write(model=base("llama"), data=tickets())
    assert config().data.columns == {"prompt": "Anfrage", "completion": "Team"}
    assert "not used: nr" in text


@pytest.mark.parametrize("rows", [12, 40, 100, 173, 400, 2000])
def test_rows_are_held_out_and_steps_suffice(rows: int, base: Base) -> None:
    write_jsonl(Path("rows.jsonl"), [ROWS["classification"](i) for i in range(rows)])
    write(model=base("llama"), data="rows.jsonl")
    found = config()
    from loractl.data.survey import survey

    assert isinstance(found.data.eval, float)
    held = survey("rows.jsonl", None).n_below(found.data.eval)
    assert min(20, rows // 4) <= held <= max(rows * 0.25, 1.1 * max(20, rows / 10) + 2)
    train, window = found.train, found.train.batch_size * found.train.gradient_accumulation
    assert train.epochs is not None and train.eval_every is not None
    steps = math.ceil((rows - held) / window) * train.epochs
    assert steps >= 100 and 5 <= steps / train.eval_every <= 10


def test_a_few_rows_are_no_reason_for_endless_passes() -> None:
    write_jsonl(Path("rows.jsonl"), [ROWS["chat"](i) for i in range(3)])
    text = write(data="rows.jsonl", model="own/model")
    assert "more than 15 passes would memorize rows" in text and config().data.eval is None


def test_long_rows_make_small_micro_batches_and_are_covered(base: Base) -> None:
    long = {"prompt": "lazy dog " * 40, "completion": "yes"}
    write_jsonl(Path("rows.jsonl"), [long, *(ROWS["classification"](i) for i in range(60))])
    write(model=base("llama"), data="rows.jsonl")
    found = config()
    assert found.data.max_length >= 150 and found.data.too_long == "error"
    endless = {"prompt": "lazy dog " * 900, "completion": "yes"}
    write_jsonl(Path("rows.jsonl"), [endless, *(ROWS["classification"](i) for i in range(60))])
    text = write(model=base("llama"), data="rows.jsonl", out="b.yaml")
    assert (config("b.yaml").data.max_length, config("b.yaml").data.too_long) == (512, "drop")
    assert "1 row is left out" in text


def test_lengths_of_a_model_that_is_not_here_are_estimated_and_it_says_so() -> None:
    text = write(model="own/model", data=tickets())
    assert "Lengths are estimated at 4 bytes per token" in text
    assert config().model.name_or_path == "own/model"


def test_rows_are_opened_without_torch(base: Base) -> None:
    import subprocess
    import sys

    argv = ["init", "--model", str(base("llama")), "--data", tickets(), "--out", "a.yaml"]
    code = (
        "import sys; from loractl.cli.main import main; assert main(sys.argv[1:]) == 0;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *argv], check=True)


def test_the_default_model_is_the_quickstarts_then_a_cached_one_then_the_smallest(
    base: Base, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tickets()
    assert first_model.SMALLEST in write(data=data, out="a.yaml")
    for name in ("own--small", "own--large"):
        snapshot = folder / "hub" / f"models--{name}" / "snapshots" / "abc"
        snapshot.parent.mkdir(parents=True)
        snapshot.symlink_to(base("llama" if name == "own--small" else "qwen3"))
    sizes = dict(first_model.cached())
    largest = max(sizes, key=lambda name: sizes[name].parameters)
    assert len(sizes) == 2
    text = write(data=data, out="b.yaml")
    assert config("b.yaml").model.name_or_path == largest and "hub's cache that fits" in text
    monkeypatch.setattr(first_model, "free_memory", lambda: 0)
    assert first_model.SMALLEST in write(data=data, out="c.yaml")
    (folder / ".models").mkdir()
    (folder / first_model.QUICKSTART).symlink_to(base("llama"))
    assert "found here" in write(data=data, out="d.yaml")
    assert config("d.yaml").model.name_or_path == ".models/SmolLM2-135M-Instruct"


def test_without_data_the_settings_are_general_and_say_so(capsys: Capture, folder: Path) -> None:
    assert init.run(InitRequest(), Path("-")) == 0
    text = capsys.readouterr().out
    assert "there is no train.jsonl here" in text and first_model.SMALLEST in text
    assert list(folder.iterdir()) == []
    Path("train.jsonl").write_text("{}\n")
    for method in init.METHODS:
        Path(f"{method}.yaml").write_text("")
        Path(f"{method}.yaml").unlink()
    Path("train.jsonl").unlink()
    write("adalora", model="own/model", out="adalora.yaml")
    Path("train.jsonl").write_text("{}\n")
    assert config("adalora.yaml").train.steps == 500


def test_data_that_cannot_be_read_is_refused(base: Base) -> None:
    with pytest.raises(DataError, match="absent.jsonl: does not exist"):
        write(model=base("llama"), data="absent.jsonl")
    Path("bad.jsonl").write_text('{"colour": 1}\n')
    with pytest.raises(DataError, match="bad.jsonl:1: found the fields colour"):
        write(model=base("llama"), data="bad.jsonl")
    with pytest.raises(ConfigError, match="--model: ./absent does not exist"):
        write(model="./absent", data=tickets())
    assert not Path("new.yaml").exists()


def test_what_was_found_and_chosen_is_told_on_stderr(capsys: Capture, base: Base) -> None:
    model = ["--model", str(base("llama"))]
    assert main(["init", *model, "--data", tickets(), "--out", "a.yaml"]) == 0
    out, err = capsys.readouterr()
    found = "found 60 rows of prompt-completion in tickets.csv: prompt from Anfrage, completion"
    assert out == "" and err.splitlines()[0] == f"{found} from Team; not used: nr"
    write_jsonl(Path("rows.jsonl"), chat_rows(9))
    assert main(["init", *model, "--data", "rows.jsonl", "--out", "-"]) == 0
    assert capsys.readouterr().err == "found 9 rows of messages in rows.jsonl\n"
    rows = "".join(f"Order number {i} is late again,{('a', 'b')[i % 2]}\n" for i in range(30))
    Path("t.csv").write_text(rows)
    assert main(["init", *model, "--data", "t.csv", "--out", "-"]) == 0
    found, odd = capsys.readouterr().err.splitlines()
    assert found.startswith("found 29 rows") and "the first row looks like data" in odd


def test_columns_that_are_named_are_those_of_the_config(capsys: Capture, base: Base) -> None:
    asked = ["init", "--model", str(base("llama")), "--columns", "text=Anfrage"]
    assert main([*asked, "--data", tickets(), "--out", "a.yaml"]) == 0
    assert config("a.yaml").data.columns == {"text": "Anfrage"}
    capsys.readouterr()
    assert main(["check", "a.yaml", "--json"]) == 0
    assert said(capsys)["data"]["train"]["format"] == "text"
    assert main([*asked, "--out", "b.yaml"]) == 2
    assert "--columns: set without --data" in capsys.readouterr().err


def test_two_columns_of_text_are_refused_with_both_cures_and_each_works(
    capsys: Capture, base: Base
) -> None:
    rows: list[dict[str, object]] = [
        {"title": f"Town {i}", "text": f"It lies by river {i}."} for i in range(30)
    ]
    write_jsonl(Path("rows.jsonl"), rows)
    asked = ["init", "--model", str(base("llama")), "--data", "rows.jsonl"]
    assert main([*asked, "--out", "a.yaml"]) == 2
    assert not Path("a.yaml").exists()
    err = capsys.readouterr().err
    cures = re.findall(r"((?:--columns \w+=\w+ ?)+)", err)
    assert len(cures) == 2
    for number, cure in enumerate(cures):
        assert main([*asked, *cure.split(), "--out", f"{number}.yaml"]) == 0
        assert main(["check", f"{number}.yaml"]) == 0


def test_rows_without_an_answer_are_refused(base: Base) -> None:
    asked: dict[str, object] = {"messages": [{"role": "user", "content": "Are you there?"}]}
    write_jsonl(Path("rows.jsonl"), [asked] * 3)
    for model in (base("llama"), "own/model"):
        with pytest.raises(DataError, match="nothing to train on: no row has a trained token"):
            write(model=model, data="rows.jsonl")


def test_the_file_written_is_named_on_stderr(capsys: Capture) -> None:
    write("full", model="own/model", out="a.yaml")
    captured = capsys.readouterr()
    assert captured.out == "" and "wrote a.yaml; next: loractl check a.yaml" in captured.err


def test_an_existing_file_is_left_as_it_is() -> None:
    Path("a.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="^a.yaml: already exists; choose another --out"):
        init.run(InitRequest(), Path("a.yaml"))
    assert Path("a.yaml").read_text() == "mine"
    with pytest.raises(ConfigError, match="no/such is not a directory"):
        init.run(InitRequest(), Path("no/such/a.yaml"))


def test_a_failed_write_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(init.os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        init.run(InitRequest(), Path("a.yaml"))
    assert not Path("a.yaml").exists()


@pytest.mark.parametrize("template", init.NOT_YET)
def test_a_template_of_a_later_version_says_so(template: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"{template} is not available in this version"):
        init.run(InitRequest((template,)), Path("a.yaml"))
    assert list(folder.iterdir()) == []


def test_an_unknown_template_leads_to_the_right_one_and_two_of_a_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected lora, qlora, .*; did you mean lora"):
        init.run(InitRequest(("lroa",)), Path("a.yaml"))
    with pytest.raises(ConfigError, match="found lora and full, expected one method"):
        init.run(InitRequest(("lora", "full", "chat")), Path("a.yaml"))
    with pytest.raises(ConfigError, match="found chat and classification, expected one shape"):
        init.run(InitRequest(("chat", "classification")), Path("a.yaml"))
