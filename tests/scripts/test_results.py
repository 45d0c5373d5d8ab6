"""What the benchmarks found is shown as it is in results.json, and their commands run."""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import __main__ as commands
from bench import (
    chart,
    forgetting,
    hub,
    memory,
    offload,
    report,
    results,
    run,
    safety,
    speed,
    store,
)

SUBJECTS = [*commands.MEASURES, *commands.MAKES]


def bench(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(run.SCRIPTS / "bench"), *map(str, arguments)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def test_the_committed_page_is_what_results_json_gives() -> None:
    page = results.page_of(report.RESULTS).read_text("utf-8")
    assert page == results.page(store.read(report.RESULTS))


def test_the_committed_records_are_written_as_they_would_be_again() -> None:
    text = report.RESULTS.read_text("utf-8")
    assert text == store.dumped(json.loads(text)) + "\n"


def test_every_record_names_its_machine_and_its_date() -> None:
    found = store.read(report.RESULTS)
    assert found.keys() == commands.MEASURES.keys()
    for records in found.values():
        for name, record in records.items():
            assert re.fullmatch(r"20\d\d-\d\d-\d\d", record["machine"]["date"]), name
            assert record["machine"]["cpu"] and record["machine"]["cores"], name


def test_the_readme_s_chart_is_drawn_from_results_json(tmp_path: Path) -> None:
    chart.speed(store.read(report.RESULTS)["speed"]["chats"], tmp_path / "speed.svg")
    assert (tmp_path / "speed.svg").read_bytes() == chart.SPEED.read_bytes()


def test_the_chart_shows_the_medians_of_what_was_measured() -> None:
    peak = {"peak_rss_bytes": 2**31}
    runs = [{"tokens_per_s": speed} for speed in (1.0, 5.0, 3.0)]
    runs[0] |= peak
    assert chart.medians({"jobs": {"loractl": runs, "limit": runs}}) == {"loractl": (3.0, 2.0)}


def test_a_stale_page_is_told(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    store.keep(path, "hub", "4 adapters", store.read(report.RESULTS)["hub"]["4 adapters"])
    assert bench("results", "--results", path).returncode == 0
    assert "switch to another adapter" in (tmp_path / "RESULTS.md").read_text("utf-8")
    assert bench("results", "--results", path, "--check").returncode == 0
    changed = store.read(path)["hub"]["4 adapters"]
    changed["seconds"]["switch"] = 1.0
    store.keep(path, "hub", "4 adapters", changed)
    done = bench("results", "--results", path, "--check")
    assert done.returncode == 1 and "RESULTS.md is stale" in done.stderr


def test_a_record_replaces_only_the_one_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    store.keep(path, "speed", "a", {"x": 1})
    store.keep(path, "speed", "b", {"x": 2})
    store.keep(path, "ops", "a", {"x": 3})
    store.keep(path, "speed", "a", {"x": 4})
    assert store.read(path) == {"speed": {"a": {"x": 4}, "b": {"x": 2}}, "ops": {"a": {"x": 3}}}
    assert list(store.read(path)["speed"]) == ["a", "b"]


def test_json_that_is_wrapped_means_the_same_and_fits() -> None:
    value = {
        "many": ["x" * 20] * 9,
        "few": [1, None, {"a": True}],
        "none": {},
        "k" * 20: ["y"] * 14,
    }
    text = store.dumped({"in": value})
    assert json.loads(text) == {"in": value}
    assert '  "few": [1, null, {"a": true}],' in text.splitlines()
    assert max(map(len, text.splitlines())) <= store.WIDTH


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_subject_answers_help(subject: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main([subject, "--help"])
    assert ended.value.code == 0
    assert f"usage: python scripts/bench {subject}" in capsys.readouterr().out


def test_the_folder_runs_from_anywhere_and_lists_its_subjects(tmp_path: Path) -> None:
    done = bench("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(f"\n    {subject}" in done.stdout for subject in SUBJECTS)
    assert bench("nothing", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["ops", "--only", "nothing"], "rms_norm"),
        (["ops", "--only", "rms_norm", "nothing"], "rms_norm"),
        (["memory", "--only", "nothing"], "lora, all-linear, float32, rank 8, 256 x 1"),
        (["speed", "--model", ".", "--data", "rows.jsonl", "--only", "nothing"], "chats"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)
def test_a_name_that_nothing_has_is_refused_with_those_that_there_are(
    words: list[str], known: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "config.json").touch()
    path = tmp_path / "found.json"
    done = bench(*words, "--results", path, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout and not path.exists()
    assert "error: --only nothing: found nothing of that name" in done.stderr
    assert known in done.stderr and done.stderr.count("\n") == 1


def test_the_page_names_the_subjects_that_measure_single_records() -> None:
    """Those that have --only, and no others."""
    (sentence,) = [text for text in results.HEAD.split(". ") if "`--only`" in text]
    for name in results.SECTIONS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"bench.{name}").add_options(parser)
        assert ("--only" in parser.format_help()) is (f"`{name}`" in sentence), name


def test_an_op_is_measured_and_its_record_and_page_are_written(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    store.keep(path, "ops", "gated", store.read(report.RESULTS)["ops"]["gated"])
    options = ("--only", "rms_norm", "--tokens", 40, "--rounds", 1, "--dtype", "float32")
    done = bench("ops", *options, "--results", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = store.read(path)["ops"]
    assert list(records) == ["gated", "rms_norm"]
    assert records["rms_norm"]["loractl_ms"] > 0 and records["rms_norm"]["off"] < 1e-4
    assert records["rms_norm"]["machine"]["dtype"] == "float32"
    page = (tmp_path / "found.md").read_text("utf-8")
    assert "| rms_norm | width 576 | 40 |" in page and "| gated |" in page


def test_the_hub_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    monkeypatch.setattr(hub, "SHAPE", hub.SHAPE | tiny)
    found = hub.measured(2, rows=4, tokens=2)
    assert found["modules"] == 7 and all(taken > 0 for taken in found["seconds"].values())
    assert "| give each of 4 rows its adapter |" in hub.table(found)


@pytest.mark.parametrize(
    "seconds, told", [(2e-7, "0.2 µs"), (47e-6, "47 µs"), (0.0612, "61 ms"), (3.94, "3.9 s")]
)
def test_times_are_told_in_their_unit(seconds: float, told: str) -> None:
    assert hub.duration(seconds) == told


def test_forgetting_is_read_where_the_training_loss_falls_under_each_level() -> None:
    rows = [{"step": n, "loss": 1.0 if n < 5 else 0.0} for n in range(1, 13)]
    evaluations = [(0, 3.0, 2.0), (6, 1.0, 2.5), (12, 0.5, 3.0)]
    rows += [{"step": n, "eval_loss": a, "retain_loss": b} for n, a, b in evaluations]
    found = forgetting.places(rows, 12)
    assert [one["step"] for one in found] == [9, 9, 9, 12]
    assert found[0]["held_out_loss"] == 0.75 and found[0]["forgotten"] == 0.75
    assert found[-1]["training_loss"] is None and found[-1]["forgotten"] == 1.0
    never = forgetting.places([{**row, "loss": 1.0} if "loss" in row else row for row in rows], 12)
    assert [one.get("forgotten") for one in never] == [None, None, None, 1.0]


def test_the_error_of_a_prediction_is_over_what_was_measured() -> None:
    sizes = {"predicted_bytes": 90 * 2**20, "measured_bytes": 100 * 2**20}
    point = memory.BASE | sizes
    assert memory.error_of(point) == pytest.approx(-0.1)
    assert "| 90 MiB | 100 MiB | -10.0% |" in memory.table({"a": point})


@pytest.mark.slow
def test_a_point_of_the_memory_grid_is_measured(base: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    only = ("--only", "rank 1, 256 x 1")
    done = bench("memory", *only, "--model", base(), "--results", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = store.read(path)["memory"].values()
    assert record["rank"] == 1 and record["predicted_bytes"] > 2**28 < record["measured_bytes"]


@pytest.mark.slow
def test_layers_from_disk_are_measured_and_give_the_same_losses(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "found.json"
    options = ("--model", base(), "--tokens", 32, "--steps", 2, "--results", path)
    done = bench("offload", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = store.read(path)["offload"].values()
    in_memory, streamed = (record["ways"][way] for way in offload.WAYS)
    assert in_memory["losses"] == streamed["losses"]
    assert record["kept_bytes"] > 0 < record["disk_bytes_per_s"]
    assert "| from disk |" in (tmp_path / "found.md").read_text("utf-8")


@pytest.mark.slow
def test_a_workload_of_speed_is_measured_and_no_other_record_changes(
    base: Callable[..., Path], train_file: Path, tmp_path: Path
) -> None:
    path, plot = tmp_path / "found.json", tmp_path / "curves.png"
    kept = store.read(report.RESULTS)["speed"]["chats"]
    store.keep(path, "speed", "chats", kept)
    options = ("--model", base(), "--data", train_file, "--steps", 2, "--peer-steps", 2)
    more = ("--dtype", "float32", "--repeats", 1, "--only", "curves", "--plot", plot)
    done = bench("speed", *options, *more, "--results", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = store.read(path)["speed"]
    assert list(records) == ["chats", "curves"] and records["chats"] == kept
    assert records["curves"]["curves"]["worst"] < 1e-4 and plot.is_file()
    assert records["curves"]["jobs"]["loractl"][0]["tokens_per_s"] > 0
    assert "**curves**" in (tmp_path / "found.md").read_text("utf-8")


@pytest.mark.slow
def test_the_share_of_safety_is_measured(config_file: Callable[..., Path], tmp_path: Path) -> None:
    path, config = tmp_path / "found.json", config_file("train: {steps: 2}")
    done = bench("safety", "--results", path, config, "--out", tmp_path / "new", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = store.read(path)["safety"].values()
    assert record["run"]["steps"] == 2
    assert 0 < sum(record["safety"].values()) < record["seconds"]["train"]
    assert "fsync" in record["safety"]
    assert "| 2 |" in safety.table({"a": record})


def test_partly_measured_workloads_are_shown_as_far_as_they_are() -> None:
    about = {"machine": store.read(report.RESULTS)["speed"]["chats"]["machine"]}
    record = about | {"title": "t", "model": "m", "jobs": {}, "unequal": [], "apart": None}
    failed = record | {"jobs": {"loractl": [{"failed": "exit code 1"}]}}
    page = speed.section({"chats": failed, "curves": record, "bias": record})
    assert "loractl failed." in page and "**curves**, m: t." in page
