"""`loractl report`: the page of a run, of several, and one that is served."""

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from loractl.artifacts.run import proofs
from loractl.cli.main import main
from tests.commands.conftest import Capture, Config
from tests.runs import train

REPORTED = ("data: {eval: 0.3}", "train: {steps: 2, save_every: 1}")


@pytest.fixture
def run(config_file: Config, tmp_path: Path) -> Path:
    assert train(config_file(*REPORTED)) == 0
    return tmp_path / "run"


def test_a_run_without_a_report_gets_one_from_its_files(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    assert "What was trained" in page and "no report.json" in page
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == page


def test_several_runs_are_compared(
    run: Path, config_file: Config, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    assert train(config_file(*REPORTED), "--out", str(other), "--set", "lora.rank=2") == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["report", str(run), str(other)]) == 0
    assert capsys.readouterr().out == "report.html\n"
    page = (tmp_path / "report.html").read_text()
    for said in ("2 runs", "95% interval", "lora.rank", "Which is better"):
        assert said in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none"], "none: no run here"),
        (["run", "--out", "x.pdf"], "expected a name that ends in .html"),
        (["run", "--out", "none/x.html"], "not in an existing directory"),
        (["run", "--watch", "--out", "x.html"], "--watch: shows one run"),
        (["run", "run", "--watch"], "--watch: shows one run"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: {}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.glob("*.html"))


def test_a_merge_is_recorded_and_shown_until_the_weights_are_others(
    run: Path, tmp_path: Path
) -> None:
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    (row,) = proofs.read(run)
    assert (row["what"], row["is_proven"]) == ("merge", True)
    assert main(["merge", str(run), "--out", str(tmp_path / "other"), "--no-verify"]) == 0
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "✓ merge" in page and "✗ merge" in page and "not proven: --no-verify" in page
    text = (run / proofs.NAME).read_text()
    (run / proofs.NAME).write_text(text.replace(row["weights_sha256"], "of others") + "[\n")
    assert main(["report", str(run)]) == 0
    assert "✓ merge" not in (run / "report.html").read_text()


def test_a_run_is_watched_until_ctrl_c(run: Path) -> None:
    words = [sys.executable, "-m", "loractl", "report", str(run), "--watch"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        with urllib.request.urlopen(url, timeout=60) as answer:
            page = answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert "What was trained" in page and not (run / "report.html").exists()
