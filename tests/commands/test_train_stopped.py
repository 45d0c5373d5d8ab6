"""`loractl train`, cut anywhere by a signal, a kill or damage: the same run in the end."""

import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loractl.artifacts.run import checkpoint
from loractl.cli.main import main
from tests.commands.conftest import HARD, Capture, Config, assert_same_run
from tests.runs import rows_of, train, tree


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_run_stopped_by_a_signal_saves_and_goes_on_as_if_never_stopped(
    step: int, number: int, code: int, config_file: Config, tmp_path: Path, whole: Any,
    stop_after: Callable[..., None], capsys: Capture,
) -> None:  # fmt: skip
    config = config_file(*HARD)
    expected = whole(config)
    stop_after(step, number)
    assert train(config) == code
    run = tmp_path / "run"
    assert rows_of(run)[-1]["step"] == step and not (run / "adapter").exists()
    assert (run / "checkpoints" / f"step-{step:06d}" / "manifest.json").exists()
    assert f"loractl train {config} --resume" in capsys.readouterr().err
    assert train(config, "--resume") == 0
    assert_same_run(run, expected)


def test_the_printed_command_repeats_the_options_of_the_run(
    config_file: Config, tmp_path: Path, stop_after: Callable[..., None], capsys: Capture
) -> None:
    config, out = config_file(), tmp_path / "a place"
    stop_after(1)
    options = ["--set", "lora.rank=2", "--set", "lora.target_modules=[q_proj, v_proj]"]
    assert train(config, *options, "--out", str(out)) == 130
    (line,) = [ln for ln in capsys.readouterr().err.splitlines() if "continue with: " in ln]
    program, *arguments = shlex.split(line.partition("continue with: ")[2])
    assert program == "loractl" and main(arguments) == 0
    assert (out / "adapter").is_dir() and not (tmp_path / "run").exists()


def test_a_run_may_be_stopped_again_and_again(
    config_file: Config, tmp_path: Path, whole: Any, stop_after: Callable[..., None]
) -> None:
    config = config_file(*HARD)
    expected = whole(config)
    stop_after(None)
    assert train(config) == 130
    for _ in range(5):
        assert train(config, "--resume") == 130
    assert train(config, "--resume") == 0
    assert_same_run(tmp_path / "run", expected)


def spawn(config: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loractl", "train", str(config), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(run: Path, step: int) -> None:
    """Until metrics.jsonl has a row of this step."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        path = run / "metrics.jsonl"
        if path.is_file() and f'{{"step": {step},' in path.read_text():
            return
        time.sleep(0.002)
    raise AssertionError(f"no step {step} within two minutes")


def test_a_killed_process_loses_only_what_came_after_its_checkpoint(
    config_file: Config, tmp_path: Path, whole: Any
) -> None:
    config, run = config_file(*HARD), tmp_path / "run"
    expected = whole(config)
    process = spawn(config)
    wait_for(run, 3)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (run / "adapter").exists()
    (run / "checkpoints" / f".step-000006.tmp-{process.pid}").mkdir(exist_ok=True)
    (run / f".config.yaml.tmp-{process.pid}").write_text("half")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # a line that the kill cut short
    assert train(config, "--resume") == 0
    assert_same_run(run, expected)
    assert not [path for path in run.rglob("*") if "tmp-" in path.name]


@pytest.mark.slow
def test_two_interrupts_leave_a_long_run_with_the_last_checkpoint_whole(
    config_file: Config, tmp_path: Path
) -> None:
    config = config_file("train: {steps: 100000, save_every: 5}")
    process = spawn(config)
    wait_for(tmp_path / "run", 6)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    found, wrong = checkpoint.newest_valid(tmp_path / "run" / "checkpoints")
    assert found.state["train"]["step"] >= 5 and not wrong


def test_a_run_killed_before_its_first_checkpoint_starts_again_by_itself(
    config_file: Config,
    tmp_path: Path,
    whole: Any,
    stop_after: Callable[..., None],
    capsys: Capture,
) -> None:
    config, run = config_file(*HARD), tmp_path / "run"
    expected = whole(config)
    stop_after(1)
    assert train(config) == 130
    shutil.rmtree(run / "checkpoints")  # as if killed in the second step: only step 1 is in the log
    assert train(config, "--resume") == 130 and "from the first step" in capsys.readouterr().err
    assert train(config, "--resume") == 0
    assert_same_run(run, expected)


def test_a_finished_run_is_complete_and_nothing_of_it_is_rewritten(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file()
    assert train(config) == 0
    before = tree(tmp_path / "run")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert train(config, "--resume") == 0
    assert "already complete" in capsys.readouterr().err
    assert train(config, "--resume", "--set", "train.log_every=7") == 0
    assert tree(tmp_path / "run") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == times


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    config_file: Config, tmp_path: Path, whole: Any, stop_after: Any, capsys: Capture
) -> None:
    config, run = config_file(*HARD), tmp_path / "run"
    expected = whole(config)
    stop_after(5)
    assert train(config) == 130
    newest = run / "checkpoints" / "step-000005"
    bad = newest / "optimizer.safetensors"
    bad.write_bytes(bad.read_bytes()[:-1])
    capsys.readouterr()
    assert train(config, "--resume") == 130  # the signal comes in the fifth step again
    err = capsys.readouterr().err
    assert f"{bad}: " in err and "truncated" in err and "from " in err
    assert f"resuming after step 4 from {run / 'checkpoints' / 'step-000004'}" in err
    assert train(config, "--resume") == 0
    assert_same_run(run, expected)


def test_with_every_checkpoint_damaged_the_run_never_starts_again_by_itself(
    config_file: Config, tmp_path: Path, stop_after: Any, capsys: Capture
) -> None:
    config, run = config_file(), tmp_path / "run"
    stop_after(3)
    assert train(config) == 130
    names = ("state.json", "adapter_model.safetensors")
    checkpoints = sorted((run / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    for directory, name in zip(checkpoints, names, strict=True):
        (directory / name).write_bytes(b"")
    before = tree(run)
    capsys.readouterr()
    assert train(config, "--resume") == 3
    err = capsys.readouterr().err
    assert all(
        f"{directory / name}" in err for directory, name in zip(checkpoints, names, strict=True)
    )
    assert tree(run) == before
    shutil.rmtree(run / "checkpoints")
    assert train(config, "--resume") == 3 and "nothing to resume" in capsys.readouterr().err
