"""What answers at once starts light: help, usage errors and planning load no torch."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMANDS = (
    "init", "check", "train", "merge", "export", "generate", "chat", "eval", "adapters",
    "inspect", "estimate", "recommend", "schema", "doctor",
)  # fmt: skip


LIGHT = """
import contextlib, io, json, sys
from loractl.cli.main import main
codes = []
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    for argv in json.loads(sys.argv[1]):
        try:
            codes.append(main(argv))
        except SystemExit as stop:
            codes.append(stop.code)
heavy = [m for m in ("torch", "transformers", "safetensors", "numpy") if m in sys.modules]
print(json.dumps([codes, heavy]))
"""


def test_help_usage_errors_and_config_errors_load_no_torch(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(MISSPELT)
    helps = [["--help"], ["-h"], ["--version"], *([command, "--help"] for command in COMMANDS)]
    wrong = [["trian"], ["train"], ["train", "--bogus", "x"], ["export"], ["generate"], ["chat"]]
    config = [["train", str(tmp_path / "bad.yaml")], ["train", str(tmp_path / "absent.yaml")]]
    argv = json.dumps([*helps, *wrong, *config])
    done = subprocess.run([sys.executable, "-c", LIGHT, argv], capture_output=True, check=True)
    codes, heavy = json.loads(done.stdout)
    assert codes == [0] * len(helps) + [2] * len(wrong + config)
    assert heavy == []


COUNT = """
import contextlib, io, json, sys
from loractl.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    try:
        main(json.loads(sys.argv[1]))
    except SystemExit:
        pass
print(json.dumps(sorted(sys.modules)))
"""
PLANNING = ["estimate --model 7B", "recommend --task complex --model 70B --memory 24GB"]
MISSPELT = "model: {name_or_path: x}\nlora: {rakn: 8}\n"


def loaded_by(arguments: list[str]) -> set[str]:
    """The modules that are loaded once a command has answered, in a process of its own."""
    argv = [sys.executable, "-c", COUNT, json.dumps(arguments)]
    done = subprocess.run(argv, capture_output=True, check=True)
    return set(json.loads(done.stdout))


def test_help_loads_few_modules_and_not_the_settings() -> None:
    loaded = loaded_by(["--help"])
    assert len(loaded) < 250, "164 when this was written"
    assert not loaded & {"pydantic", "yaml", "torch", "loractl.config.settings"}


@pytest.mark.parametrize("arguments", PLANNING)
def test_planning_loads_few_modules_and_no_torch(arguments: str) -> None:
    loaded = loaded_by(arguments.split())
    assert len(loaded) < 450, "325 when this was written"
    assert not loaded & {"torch", "transformers", "safetensors", "numpy", "matplotlib"}


def test_a_misspelt_key_is_named_with_few_modules_loaded(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(MISSPELT)
    loaded = loaded_by(["train", str(tmp_path / "bad.yaml")])
    assert len(loaded) < 450, "318 when this was written"
    assert not loaded & {"torch", "transformers", "safetensors", "numpy"}


# What is counted above, by the clock: only a quiet machine can tell.


def best_seconds(arguments: list[str], *, enough: float) -> float:
    """The fastest of up to eight runs: what the program itself takes, whatever else the machine
    does."""
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "loractl", *arguments],
            capture_output=True,
            env={**os.environ, "NO_COLOR": "1"},
        )
        best = min(best, time.perf_counter() - began)
        if best < enough:
            break
    return best


OTHERS = "import pydantic, rich.table, typer, yaml"
"""What others' libraries take, which is theirs: 0.24 s on an EPYC with AVX2 alone, whose clock
makes `recommend` 0.69 s, in this version and in the ones before."""
USUAL = 0.17


@pytest.fixture(scope="module")
def slowness() -> float:
    """How many times as long as usual others' libraries take to start here; at least 1."""
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", OTHERS], check=True)
        best = min(best, time.perf_counter() - began)
    return max(1.0, best / USUAL)


@pytest.mark.slow
def test_help_answers_within_four_tenths_of_a_second(slowness: float) -> None:
    limit = 0.4 * slowness
    assert best_seconds(["--help"], enough=limit) < limit


@pytest.mark.slow
@pytest.mark.parametrize("arguments", PLANNING)
def test_planning_answers_within_six_tenths_of_a_second(arguments: str, slowness: float) -> None:
    limit = 0.6 * slowness
    assert best_seconds(arguments.split(), enough=limit) < limit


@pytest.mark.slow
def test_a_misspelt_key_is_named_within_a_second(tmp_path: Path, slowness: float) -> None:
    (tmp_path / "bad.yaml").write_text(MISSPELT)
    assert best_seconds(["train", str(tmp_path / "bad.yaml")], enough=slowness) < slowness
