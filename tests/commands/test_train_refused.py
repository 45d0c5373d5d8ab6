"""What `loractl train` refuses: places that hold other things, data that cannot be trained on."""

from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Capture, Config
from tests.runs import rows_of, train, tree


def test_there_must_be_a_run_to_resume(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file()
    assert train(config, "--resume") == 3
    (tmp_path / "run").mkdir()
    assert train(config, "--resume") == 3
    assert "no run to resume" in capsys.readouterr().err
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("finished", [True, False])
def test_an_existing_run_is_neither_continued_nor_replaced_unasked(
    finished: bool, config_file: Config, tmp_path: Path, stop_after: Any, capsys: Capture
) -> None:
    config = config_file()
    if not finished:
        stop_after(2)
    assert train(config) == (0 if finished else 130)
    before = tree(tmp_path / "run")
    assert train(config) == 3
    err = capsys.readouterr().err
    assert all(word in err for word in ("--resume", "--overwrite", "--out"))
    assert tree(tmp_path / "run") == before


def test_overwriting_replaces_a_run_and_keeps_files_of_other_origin(
    config_file: Config, tmp_path: Path
) -> None:
    config, run = config_file(), tmp_path / "run"
    assert train(config, "--set", "train.steps=6") == 0
    (run / "notes.txt").write_text("mine")
    assert train(config, "--overwrite") == 0
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("flag", [[], ["--resume"], ["--overwrite"]])
def test_a_file_or_a_directory_of_other_things_is_no_place_for_a_run(
    flag: list[str], config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    file, foreign = tmp_path / "file", tmp_path / "foreign"
    file.write_text("x")
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    for out, words in ((file, "is a file"), (file / "run", "is a file"), (foreign, "hold a run")):
        assert train(config_file(), "--out", str(out), *flag) == 2
        assert words in capsys.readouterr().err
    assert file.read_text() == "x" and tree(foreign).keys() == {"thesis.tex"}


def test_what_a_killed_start_leaves_is_no_obstacle(config_file: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.yaml.tmp-12345").write_text("half")
    assert train(config_file("train: {steps: 1}")) == 0
    assert not list(run.glob(".*"))


def test_a_misspelt_target_is_answered_with_the_line_and_the_names_there_are(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file("lora: {target_modules: [q_porj]}")
    (line,) = [
        number
        for number, text in enumerate(config.read_text().splitlines(), 1)
        if "target_modules" in text
    ]
    assert train(config) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith(f"error: {config}:{line}: lora.target_modules: ")
    assert all(name in err for name in ("q_porj", "q_proj", "down_proj"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('{"messages": [{"role": "user", "content": "x"}]}\n', "no row has a trained token"),
        ('{"messages": "x"}\n', "train.jsonl:1: messages is str"),
        ("", "found no rows"),
        ('{"text": "\\ud800"}\n', "train.jsonl:1: "),
    ],
)
def test_data_that_cannot_be_trained_on_leaves_no_run(
    rows: str, words: str, config_file: Config, train_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file()
    train_file.write_text(rows)
    assert train(config) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_rejected_overwrite_leaves_the_old_run_as_it_was(
    config_file: Config, train_file: Path, tmp_path: Path
) -> None:
    config = config_file()
    assert train(config) == 0
    before = tree(tmp_path / "run")
    train_file.write_text('{"messages": "x"}\n')
    assert train(config, "--overwrite") == 2
    assert tree(tmp_path / "run") == before
