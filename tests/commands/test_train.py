"""`loractl train`, run whole: what it writes, what it refuses, and that a run cut anywhere is the
same run."""

import gc
import hashlib
import json
import math
import os
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
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loractl import console
from loractl.artifacts.run import checkpoint
from loractl.cli.main import main
from tests.conftest import ARCHITECTURES, chat_rows, write_jsonl

Config = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
HARD = (  # everything that must survive a resume
    "lora: {dropout: 0.2}",
    "train: {steps: 7, batch_size: 2, gradient_accumulation: 2, save_every: 2}",
    "data: {max_length: 128, packing: true}",
)
TIMES = ("tokens_per_s", "peak_memory_bytes")


def train(config: Path, *options: str) -> int:
    return main(["train", str(config), *options])


def tree(directory: Path) -> dict[str, str]:
    """The hash of every file below a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows_of(run)]


def assert_same_run(one: Path, other: Path) -> None:
    """Final adapter, newest checkpoint's tensors and metrics are equal, times apart."""
    for name in (
        "adapter/adapter_model.safetensors",
        "checkpoints/step-000007/optimizer.safetensors",
    ):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert timeless(one) == timeless(other)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, base: Callable[..., Path]
) -> Callable[..., Path]:
    """whole(config) -> the directory of that config's run, trained without a break, once a
    module."""
    made: dict[str, Path] = {}

    def run(config: Path) -> Path:
        key = "hard"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole") / "run"
            assert train(config, "--out", str(made[key])) == 0
        return made[key]

    return run


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """stop_after(3) lets a signal arrive in the third step, as the shell would send it; None: in
    each."""

    def arrange(step: int | None, number: int = signal.SIGINT) -> None:
        show = console.Progress.step

        def shown(self: console.Progress, done: int, text: str, *, seconds_left: float) -> None:
            show(self, done, text, seconds_left=seconds_left)
            if step in (None, done):
                os.kill(os.getpid(), number)

        monkeypatch.setattr(console.Progress, "step", shown)

    return arrange


# What a run writes


def test_a_run_directory_holds_what_the_contract_names(config_file: Config, tmp_path: Path) -> None:
    assert train(config_file()) == 0
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.jsonl", "data.json", "checkpoints", "adapter"
    }  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-000002", "step-000004"
    ]  # fmt: skip
    for saved in (run / "checkpoints").iterdir():
        assert {path.name for path in saved.iterdir()} >= {
            "adapter_model.safetensors",
            "adapter_config.json",
            "optimizer.safetensors",
            "state.json",
            "manifest.json",
        }
    assert {path.name for path in (run / "adapter").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "loractl.json", "chat_template.jinja"
    }  # fmt: skip
    about = json.loads((run / "adapter" / "loractl.json").read_text())
    assert {"loractl", "base", "data", "versions"} <= about.keys()
    account = json.loads((run / "data.json").read_text())["train"]
    assert (account["rows"], account["examples"], account["format"]) == (12, 12, "messages")
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in run.rglob("*") if path.is_file()} == {
        0o666 & ~mask
    }


def test_the_search_for_garbage_is_as_it_was_after_a_run(
    config_file: Config, tmp_path: Path
) -> None:
    frozen = gc.get_freeze_count()
    assert train(config_file()) == 0
    assert gc.isenabled() and gc.get_freeze_count() == frozen
    absent = config_file("lora: {target_modules: [absent]}")
    assert train(absent, "--out", str(tmp_path / "other")) == 2
    assert gc.isenabled() and gc.get_freeze_count() == frozen


def test_metrics_have_a_row_a_step_with_the_keys_of_the_contract(
    config_file: Config, tmp_path: Path
) -> None:
    assert train(config_file()) == 0
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row.keys() >= {
            "step",
            "epoch",
            "loss",
            "lr",
            "grad_norm",
            "tokens",
            "tokens_per_s",
            "peak_memory_bytes",
        }
        assert all(isinstance(row[key], int | float) and row[key] > 0 for key in row)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_config_of_a_run_has_every_key_and_gives_the_same_run(
    config_file: Config, tmp_path: Path
) -> None:
    assert train(config_file(), "--set", "lora.rank=2", "--set", "train.learning_rate=1e-3") == 0
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["lora"]["rank"] == 2 and resolved["lora"]["alpha"] == 4
    assert resolved["train"]["learning_rate"] == 1e-3 and resolved["seed"] == 0
    again = shutil.copy(tmp_path / "run" / "config.yaml", tmp_path / "again.yaml")
    assert train(Path(again), "--out", str(tmp_path / "other")) == 0
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_the_same_config_gives_the_same_bytes_and_another_seed_others(
    config_file: Config, tmp_path: Path
) -> None:
    config = config_file("lora: {dropout: 0.1}")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train(config, "--out", str(tmp_path / name), "--set", f"seed={seed}") == 0
    a, b, c = (tree(tmp_path / name / "adapter")["adapter_model.safetensors"] for name in "abc")
    assert a == b != c
    assert timeless(tmp_path / "a") == timeless(tmp_path / "b")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_trains_merges_and_answers(
    architecture: str, base: Any, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    packing = "data: {packing: false}" if architecture == "opt" else "data: {packing: true}"
    assert train(config_file(packing, "train: {steps: 2}", model=base(architecture))) == 0
    run, out = str(tmp_path / "run"), str(tmp_path / "merged")
    assert main(["merge", run, "--out", out]) == 0
    capsys.readouterr()
    ask = [
        "generate",
        "--prompt",
        "What is 2 plus 2?",
        "--max-new-tokens",
        "4",
        "--dtype",
        "float32",
    ]
    assert main([*ask, "--adapter", f"tuned={run}"]) == 0
    tuned = capsys.readouterr().out
    assert main([*ask, "--model", out]) == 0
    assert capsys.readouterr().out == tuned


def test_a_model_that_leaks_between_packed_examples_is_refused_before_anything_is_written(
    base: Any, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    assert train(config_file(model=base("opt"))) == 2
    assert "set data.packing to false" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


ROWS: dict[str, list[dict[str, object]]] = {
    "alpaca": [{"instruction": f"Say {i}.", "input": "x" * i, "output": f"{i}"} for i in range(6)],
    "prompt-completion": [{"prompt": f"Say {i}.", "completion": f" {i}"} for i in range(6)],
    "text": [{"text": f"{i} plus {i} is {2 * i}."} for i in range(6)],
}


@pytest.mark.parametrize("format", ROWS)
@pytest.mark.parametrize("named", [True, False])
def test_every_format_of_rows_trains_named_or_seen(
    format: str, named: bool, config_file: Config, train_file: Path, tmp_path: Path
) -> None:
    write_jsonl(train_file, ROWS[format])
    config = config_file("train: {steps: 1}", f"data: {{format: {format if named else 'auto'}}}")
    assert train(config) == 0
    account = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    assert account["format"] == format and account["examples"] == 6


def test_padded_and_packed_runs_of_one_window_take_the_same_step(
    config_file: Config, tmp_path: Path
) -> None:
    losses = []
    for packing in (True, False):
        out = tmp_path / str(packing)
        config = config_file("train: {steps: 1, batch_size: 12}", f"data: {{packing: {packing}}}")
        assert train(config, "--out", str(out)) == 0
        losses.append(rows_of(out)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_bom_crlf_and_blank_lines_change_no_loss(
    config_file: Config, train_file: Path, tmp_path: Path
) -> None:
    assert train(config_file(), "--out", str(tmp_path / "clean")) == 0
    text = train_file.read_bytes().replace(b"\n", b"\r\n")
    train_file.write_bytes(b"\xef\xbb\xbf" + text + b"\r\n\r\n")
    assert train(config_file(), "--out", str(tmp_path / "odd")) == 0
    assert timeless(tmp_path / "clean") == timeless(tmp_path / "odd")


def test_a_run_with_gradient_checkpointing_has_the_same_bytes(
    config_file: Config, tmp_path: Path
) -> None:
    for value in ("true", "false"):
        config = config_file(f"train: {{gradient_checkpointing: {value}, steps: 2}}")
        assert train(config, "--out", str(tmp_path / value)) == 0
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "true" / name).read_bytes() == (tmp_path / "false" / name).read_bytes()


def test_rows_longer_than_the_models_positions_are_told_by_them(
    base: Any, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    """GPT-2 has no position beyond its 512th: rows packed longer than that would crash it."""
    config = config_file("data: {max_length: 1024}", "train: {steps: 1}", model=base("gpt2"))
    assert train(config) == 0
    assert "the model has 512 positions; 512 is used" in capsys.readouterr().err


# Evaluation


def test_held_out_rows_are_evaluated_at_start_in_between_and_at_the_end(
    config_file: Config, tmp_path: Path
) -> None:
    held_out = write_jsonl(tmp_path / "held.jsonl", chat_rows(15)[12:])
    config = config_file(f"data: {{eval: {held_out}}}", "train: {steps: 5, eval_every: 2}")
    assert train(config) == 0
    rows = rows_of(tmp_path / "run")
    assert [(row["step"], "eval_loss" in row) for row in rows] == [
        (0, True), (1, False), (2, False), (2, True), (3, False), (4, False), (4, True), (5, False),
        (5, True),
    ]  # fmt: skip
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert losses[-1] < losses[0]
    accounts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert accounts["eval"]["examples"] == 3


def test_a_fraction_is_held_out_of_the_training_rows(config_file: Config, tmp_path: Path) -> None:
    assert train(config_file("data: {eval: 0.3}", "train: {steps: 1}")) == 0
    accounts = json.loads((tmp_path / "run" / "data.json").read_text())
    counts = [accounts[name]["rows"] for name in ("train", "eval")]
    assert sum(counts) == 12 and min(counts) > 0
    assert [row["step"] for row in rows_of(tmp_path / "run") if "eval_loss" in row] == [0, 1]


def test_a_fraction_that_leaves_no_rows_is_refused(
    config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    assert train(config_file("data: {eval: 0.0001}")) == 2
    assert "a share of 0.0001 leaves no row" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def early(config_file: Config, tmp_path: Path, **more: object) -> Path:
    """A run that learns its 12 rows by heart while the loss on held-out text of another kind
    rises."""
    held_out = write_jsonl(tmp_path / "held.jsonl", [{"prompt": "東京", "completion": "Привет"}])
    data = f"data: {{eval: {held_out}}}"
    settings = {"steps": 40, "eval_every": 1, "early_stopping": 2, "learning_rate": 0.3, **more}
    return config_file(data, f"train: {json.dumps({**settings, 'save_every': 100})}")


def test_early_stopping_ends_a_run_that_gets_no_better(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    assert train(early(config_file, tmp_path)) == 0
    run = tmp_path / "run"
    losses = [row["eval_loss"] for row in rows_of(run) if "eval_loss" in row]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 40 and rows_of(run)[-1]["step"] == best + 2
    assert "stopped early" in capsys.readouterr().err
    before = tree(run)
    assert train(early(config_file, tmp_path), "--resume") == 0
    assert "already complete" in capsys.readouterr().err and tree(run) == before


def test_a_run_that_stopped_early_and_was_killed_before_its_adapter_trains_no_further(
    config_file: Config, tmp_path: Path
) -> None:
    config, run = early(config_file, tmp_path), tmp_path / "run"
    assert train(config) == 0
    before = tree(run)
    shutil.rmtree(run / "adapter")
    assert train(config, "--resume") == 0
    assert tree(run) == before


# method: full


def test_a_full_run_writes_a_model_that_transformers_loads_with_the_trained_weights(
    config_file: Config, tmp_path: Path, base: Any, capsys: Capture
) -> None:
    config = config_file("method: full", "train: {steps: 3, learning_rate: 1e-3}")
    assert train(config) == 0
    run = tmp_path / "run"
    assert not (run / "adapter").exists()
    model = AutoModelForCausalLM.from_pretrained(run / "model", local_files_only=True)
    trained = load_file(run / "checkpoints" / "step-000003" / "model.safetensors")
    before = AutoModelForCausalLM.from_pretrained(base("llama")).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name]) and not torch.equal(value, before[name])
    capsys.readouterr()
    assert main(["generate", "--model", str(run), "--prompt", "hi", "--max-new-tokens", "3"]) == 0


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2"])
def test_a_full_run_of_tied_weights_is_loaded_with_one_weight(
    architecture: str, config_file: Config, tmp_path: Path, base: Any
) -> None:
    config = config_file("method: full", "train: {steps: 1}", model=base(architecture))
    assert train(config) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embeddings.weight
    trained = load_file(tmp_path / "run" / "checkpoints" / "step-000001" / "model.safetensors")
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in trained.items())


def test_a_full_run_is_resumed_bit_for_bit(
    config_file: Config, tmp_path: Path, stop_after: Callable[..., None]
) -> None:
    config = config_file("method: full", "train: {steps: 4, learning_rate: 1e-3}")
    assert train(config, "--out", str(tmp_path / "whole")) == 0
    stop_after(3)
    assert train(config) == 130
    assert train(config, "--resume") == 0
    assert tree(tmp_path / "whole" / "model") == tree(tmp_path / "run" / "model")
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "run")


# Resume


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


def test_two_interrupts_leave_at_once_with_the_last_checkpoint_whole(
    config_file: Config, tmp_path: Path
) -> None:
    config = config_file("train: {steps: 100000, save_every: 5}")
    process = spawn(config)
    wait_for(tmp_path / "run", 6)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 10
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


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.rank=8", "lora.rank: 4 -> 8"),
        ("train.learning_rate=0.02", "train.learning_rate: 0.01 -> 0.02"),
        ("train.batch_size=2", "train.batch_size: 4 -> 2"),
        ("seed=1", "seed: 0 -> 1"),
        ("train.steps=6", "train.steps: 4 -> 6 since the run started; add --extend"),
        ("train.steps=2", "train.steps: 4 -> 2 since the run started; resume with the settings"),
    ],
)
def test_a_changed_setting_is_refused_with_its_old_and_new_value(
    override: str, words: str, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file()
    assert train(config) == 0
    before = tree(tmp_path / "run")
    capsys.readouterr()
    assert train(config, "--resume", "--set", override) == 3
    assert words in capsys.readouterr().err
    assert tree(tmp_path / "run") == before


def test_all_changed_settings_are_named(config_file: Config, capsys: Capture) -> None:
    config = config_file()
    assert train(config) == 0
    assert train(config, "--resume", "--set", "lora.rank=8", "--set", "seed=1") == 3
    err = capsys.readouterr().err
    assert all(w in err for w in ("lora.rank: 4 -> 8", "lora.alpha: 8 -> 16", "seed: 0 -> 1"))


def test_changed_data_is_refused_even_under_its_old_name(
    config_file: Config, train_file: Path, tmp_path: Path, stop_after: Any, capsys: Capture
) -> None:
    config = config_file()
    stop_after(2)
    assert train(config) == 130
    before = tree(tmp_path / "run")
    train_file.write_bytes(train_file.read_bytes() + b"\n")
    assert train(config, "--resume") == 3
    assert "data.train: the content changed" in capsys.readouterr().err
    assert tree(tmp_path / "run") == before


def test_a_changed_chat_template_is_refused(
    base: Any, config_file: Config, tmp_path: Path, stop_after: Any, capsys: Capture
) -> None:
    model = shutil.copytree(base("llama"), tmp_path / "base")
    config = config_file(model=model)
    stop_after(2)
    assert train(config) == 130
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text("Hello. " + template)
    assert train(config, "--resume") == 3
    assert "tokens of the rows: the content changed" in capsys.readouterr().err
    (model / "chat_template.jinja").write_text("{# what it writes is the same #}" + template)
    assert train(config, "--resume") == 0


def test_a_changed_base_is_refused(
    base: Any, config_file: Config, tmp_path: Path, stop_after: Any, capsys: Capture
) -> None:
    model = shutil.copytree(base("llama"), tmp_path / "base")
    config = config_file(model=model)
    stop_after(2)
    assert train(config) == 130
    before = tree(tmp_path / "run")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] += 1e-3
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert train(config, "--resume") == 3
    assert "model.name_or_path: the content changed" in capsys.readouterr().err
    assert tree(tmp_path / "run") == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_may_be_extended(
    finished: bool, config_file: Config, tmp_path: Path, stop_after: Any
) -> None:
    config, run = config_file("train: {schedule: constant}"), tmp_path / "run"
    longer = ["--set", "train.steps=6"]
    assert train(config, *longer, "--out", str(tmp_path / "whole")) == 0
    if finished:
        assert train(config) == 0
    else:
        stop_after(3)
        assert train(config) == 130
    assert train(config, *longer, "--resume", "--extend") == 0
    assert timeless(run) == timeless(tmp_path / "whole")
    name = "adapter/adapter_model.safetensors"
    assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 6


def test_extending_neither_shortens_a_run_nor_changes_other_settings(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file()
    assert train(config) == 0
    before = tree(tmp_path / "run")
    assert train(config, "--resume", "--extend", "--set", "train.steps=3") == 3
    assert "train.steps: 4 -> 3" in capsys.readouterr().err
    both = ["--set", "train.steps=9", "--set", "seed=3"]
    assert train(config, "--resume", "--extend", *both) == 3
    assert "seed: 0 -> 3" in capsys.readouterr().err
    epochs = ["--set", "train.steps=null", "--set", "train.epochs=1"]  # of 1 step of 12 rows
    assert train(config, "--resume", "--extend", *epochs, "--set", "seed=0") == 3
    assert "4 steps are already done, more than the" in capsys.readouterr().err
    assert tree(tmp_path / "run") == before


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


# What is refused


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
    for out, words in ((file, "is a file"), (file / "run", "is a file"), (foreign, "holds no run")):
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
        ("", "no examples"),
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


# Numbers


def test_a_nan_in_a_base_weight_stops_before_the_first_update(
    base: Any, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    model = shutil.copytree(base("llama"), tmp_path / "base")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert train(config_file(model=model)) == 4
    assert "step 1: loss is nan, in the batch of rows " in capsys.readouterr().err
    assert not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_steps_that_are_not_finite_may_be_skipped_and_are_counted_until_their_limit(
    base: Any, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    model = shutil.copytree(base("llama"), tmp_path / "base")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    skip = "train: {on_non_finite: skip, non_finite_limit: 4, steps: 6, save_every: 1}"
    assert train(config_file(skip, model=model)) == 4
    err = capsys.readouterr().err
    assert "step 1: skipped, the weights are unchanged: loss is nan, in the batch of rows " in err
    assert "error: step 4: loss is nan" in err and "not finite in 4 steps in a row" in err
    run = tmp_path / "run"
    assert [(row["step"], row["loss"], row["skipped_steps"]) for row in rows_of(run)] == [
        (1, None, 1), (2, None, 2), (3, None, 3)
    ]  # fmt: skip
    assert all(row["skipped"].startswith("loss is nan, in ") for row in rows_of(run))
    for path in run.rglob("adapter_model.safetensors"):
        assert all(bool(torch.isfinite(value).all()) for value in load_file(path).values())
    assert train(config_file(skip, model=model), "--resume") == 4, "the count goes on"
    assert train(config_file(skip, "train: {steps: 3}", model=model), "--overwrite") == 4
    assert "none of the 3 steps had a finite loss" in capsys.readouterr().err
    assert not (run / "adapter").exists()
    assert train(config_file("train: {non_finite_limit: 4}")) == 2
    assert "is of on_non_finite: skip" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [1, 6])
def test_a_learning_rate_that_explodes_leaves_only_finite_checkpoints(
    steps: int, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    settings = f"train: {{steps: {steps}, save_every: 1, learning_rate: 1e30}}"
    code = train(config_file(settings))
    assert code == (0 if steps == 1 else 4)
    if code:
        assert "try a learning_rate below" in capsys.readouterr().err
        assert not (tmp_path / "run" / "adapter").exists()
    for row in rows_of(tmp_path / "run"):
        assert math.isfinite(row["loss"])
    for path in (tmp_path / "run").rglob("adapter_model.safetensors"):
        assert all(bool(torch.isfinite(value).all()) for value in load_file(path).values())


def test_a_learning_rate_beyond_what_float32_holds_is_refused(
    config_file: Config, capsys: Capture
) -> None:
    assert train(config_file("train: {learning_rate: 1.0e+38}")) == 2
    assert "train.learning_rate: " in capsys.readouterr().err


def test_weights_that_a_step_made_infinite_are_not_saved(
    config_file: Config, tmp_path: Path, base: Any, capsys: Capture
) -> None:
    """Weight decay of 1e30 at a rate of 1e30 multiplies a weight by -1e60, beyond float32, in one
    step."""
    settings = "train: {steps: 1, learning_rate: 1e30, weight_decay: 1e30}"
    assert train(config_file("method: full", settings)) == 4
    assert "is no longer finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "model").exists()


def test_a_half_precision_run_writes_metrics_that_any_json_reader_takes(
    config_file: Config, tmp_path: Path
) -> None:
    sections = (
        "model: {dtype: float16}",
        "train: {steps: 2, batch_size: 2}",
        "data: {packing: false}",
    )
    assert train(config_file(*sections)) == 0
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    state = json.loads(
        (tmp_path / "run" / "checkpoints" / "step-000002" / "state.json").read_text()
    )
    assert state["train"]["loss_scale"]["scale"] >= 1
