"""The report at the end of a training: written, bounded, and never the run's undoing."""

import json
from pathlib import Path

import pytest

from loractl.engine.report import at_end
from loractl.errors import INTERRUPTED, Stopped
from tests.engine.report.conftest import REPORTED, Config
from tests.runs import train, tree

Capture = pytest.CaptureFixture[str]


def test_its_path_is_the_last_line_and_it_opens_nothing(
    config_file: Config, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda *_: pytest.fail("opens a browser"))
    assert train(config_file(*REPORTED)) == 0
    run = tmp_path / "run"
    assert capsys.readouterr().err.splitlines()[-1] == f"report   {run / 'report.html'}"
    notes = json.loads((run / "report.json").read_text())
    assert {"threads", "device", "dtype"} <= notes["environment"].keys()
    shown = notes["rows"]
    assert len(shown) == 3 and all(row["trained"] > 0 for row in shown)
    for row in shown:
        spoken = "".join(span["text"] for span in row["spans"])
        trained = "".join(span["text"] for span in row["spans"] if span["is_trained"])
        assert "<|im_start|>user" in spoken and trained.endswith("<|im_end|>")


def test_without_the_setting_nothing_is_written_and_the_run_is_the_same(
    config_file: Config, tmp_path: Path
) -> None:
    config = config_file(*REPORTED)
    for out, wanted in (("with", "true"), ("without", "false")):
        options = ("--out", str(tmp_path / out), "--set", f"train.report={wanted}")
        assert train(config, *options) == 0
    one, other = (tree(tmp_path / out) for out in ("with", "without"))
    assert one.keys() - other.keys() == {"report.html", "report.json"}
    for name in other.keys() - {"config.yaml", "metrics.jsonl"}:
        assert one[name] == other[name], name


@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError(), OSError(28, "full")])
def test_a_fault_is_a_note(
    error: Exception, config_file: Config, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(at_end, "first_questions", fails)
    assert train(config_file(*REPORTED)) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"note: the report could not be written: {type(error).__name__}")
    assert said.endswith(f"loractl report {tmp_path / 'run'}")
    assert (tmp_path / "run" / "adapter").is_dir()
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_signal_ends_the_report_and_not_the_run(
    config_file: Config, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object) -> None:
        raise Stopped(INTERRUPTED)

    monkeypatch.setattr(at_end, "answers", stops)
    assert train(config_file(*REPORTED)) == 0
    assert "the run is complete; its report is not written" in capsys.readouterr().err
    assert (tmp_path / "run" / "adapter").is_dir()
    assert train(config_file(*REPORTED), "--resume") == 0
    assert "already complete" in capsys.readouterr().err


def test_a_run_that_goes_on_has_no_report_of_what_it_was(
    reported: Path, config_file: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(at_end, "first_questions", fails)
    longer = config_file(*REPORTED, "train: {steps: 3}")
    assert train(longer, "--resume", "--extend") == 0
    assert not (reported / "report.html").exists() and not (reported / "report.json").exists()
