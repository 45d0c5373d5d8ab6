"""SIGINT and SIGTERM at any time: what was done is saved, what was not is told, nothing is lost."""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.artifacts.run import checkpoint
from loractl.paths import cache_home
from tests.faults.conftest import CONFIGS, FULL, Process, Warm, Whole, finish, rows
from tests.sweeps import sampled
from tests.tiny import chat_rows, write_jsonl

STOPS = 30 if FULL else 2
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize(
    "name", sampled(CONFIGS, "dropout-accumulation-shuffle", "packing-evaluation")
)
def test_a_run_stopped_at_random_times_loses_no_step_and_goes_on_as_if_never_stopped(
    name: str, warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    expected, chance = whole(name), random.Random(name)
    for trial in range(STOPS):
        run, number = tmp_path / f"run-{trial}", chance.choice(list(CODES))
        process = warm.start("train", expected.config, "--out", run)
        wait_until(process, (run / ".lock").exists)
        time.sleep(chance.uniform(0, expected.seconds))
        process.send(number)
        if process.wait() == 0:  # it came when all was done
            assert (run / "adapter" / "adapter_model.safetensors").exists()
            continue
        assert process.code == CODES[number], process.said
        assert "Traceback" not in process.said and "loractl train" in process.said
        assert not (run / ".lock").exists()
        if not run.exists():
            assert "stopped before the first step; start again with: " in process.said
            continue
        assert f"{expected.config} --out {run} --resume" in process.said
        if done := [row["step"] for row in rows(run) if "loss" in row]:
            found, wrong = checkpoint.newest_valid(run / "checkpoints")
            assert found.state["train"]["step"] == done[-1] and not wrong
        finish(warm, expected, run)


def wait_until(process: Process, is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until, process.said
        time.sleep(0.002)


@pytest.mark.slow
def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(
    warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    """The evaluation is left to the resumed run, which logs it once."""
    expected, run = whole(), tmp_path / "run"
    held_out = write_jsonl(tmp_path / "held.jsonl", chat_rows(600))
    options = (
        "--set", f"data.eval={held_out}", "--set", "train.eval_every=2", "--set",
        "train.steps=3",
    )  # fmt: skip
    uncut = warm.run("train", expected.config, "--out", tmp_path / "uncut", *options)
    assert uncut.code == 0, uncut.said
    process = warm.start("train", expected.config, "--out", run, *options)

    def second_is_done() -> bool:
        log = run / "metrics.jsonl"
        return log.is_file() and '{"step": 2, "epoch"' in log.read_text()

    wait_until(process, second_is_done)
    process.send(signal.SIGTERM)
    assert process.wait() == 143, process.said
    assert [(row["step"], "eval_loss" in row) for row in rows(run)] == [
        (0, True), (1, False), (2, False)
    ], "the evaluation after step 2 was not waited for"  # fmt: skip
    for cut in (True, False):
        again = warm.start("train", expected.config, "--out", run, *options, "--resume")
        if cut:  # and killed after it made up for the evaluation, before another checkpoint
            wait_until(again, lambda: '{"step": 2, "eval_loss"' in read(run))
            again.kill_after(0)
        else:
            assert again.wait() == 0, again.said
    assert rows(run) == rows(tmp_path / "uncut")
    name = "adapter/adapter_model.safetensors"
    assert (run / name).read_bytes() == (tmp_path / "uncut" / name).read_bytes()


def read(run: Path) -> str:
    return (run / "metrics.jsonl").read_text()


def stores() -> set[str]:
    """What was tokenised to its end."""
    return {path.name for path in (cache_home() / "tokens").iterdir()}


@pytest.mark.parametrize("number", CODES)
def test_a_signal_while_rows_are_tokenised_leaves_at_once_and_no_trace(
    number: signal.Signals, warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    expected, run = whole(), tmp_path / "run"
    many = write_jsonl(tmp_path / f"many-{number}.jsonl", chat_rows(60_000))
    before = stores()
    process = warm.start("train", expected.config, "--out", run, "--set", f"data.train={many}")
    wait_until(process, (run / ".lock").exists)
    time.sleep(0.4)
    process.send(number)
    assert process.wait() == CODES[number], process.said
    assert stores() == before, "the rows were not tokenised to their end"
    assert (
        f"start again with: loractl train {expected.config} --out {run} --set" not in process.said
    )
    assert f"--set data.train={many} --out {run}\n" in process.said
    assert not run.exists()


@pytest.mark.slow
def test_a_second_interrupt_does_not_wait_for_a_long_step(
    warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    """A step of several seconds, most of them in one call of torch's backward pass."""
    expected, run = whole(), tmp_path / "run"
    row = {"text": "The quick brown fox jumps over the lazy dog. " * 200}
    long = write_jsonl(tmp_path / "long.jsonl", [row] * 400)
    options = (
        "--set", f"data.train={long}", "--set", "train.batch_size=400", "--set",
        "data.max_length=512", "--set", "data.too_long=truncate", "--set", "train.save_every=1",
        "--set", "data.format=text",
    )  # fmt: skip
    process = warm.start("train", expected.config, "--out", run, *options)
    wait_until(process, (run / "checkpoints" / "step-000001").exists)
    before = json.dumps(rows(run))
    time.sleep(1.0)
    process.send(signal.SIGINT)
    time.sleep(0.1)
    assert "stopping after this step" in process.said
    process.send(signal.SIGINT)
    assert process.wait() == 130, process.said
    assert json.dumps(rows(run)) == before, "the step was not long enough to be cut"
    assert checkpoint.newest_valid(run / "checkpoints")[1] == []


def test_a_merge_that_is_ended_leaves_nothing_and_what_a_kill_leaves_is_swept(
    warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process = warm.start("merge", whole().run, "--out", out)
        wait_until(process, lambda: any(tmp_path.iterdir()))
        process.send(number)
        assert process.wait() == code, process.said
        assert "Traceback" not in process.said
        assert bool(list(tmp_path.iterdir())) == (code == -9)
    assert warm.run("merge", whole().run, "--out", out).code == 0
    assert list(tmp_path.iterdir()) == [out]
