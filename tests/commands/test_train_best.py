"""`train.keep`: the weights with the lowest held-out loss are published, and what is said of it."""

import json
import shutil
from pathlib import Path

import pytest

from loractl.artifacts.files import read_tensors
from loractl.artifacts.run import checkpoint
from tests.commands.conftest import Capture, Config
from tests.runs import rows_of, timeless, train, tree
from tests.tiny import write_jsonl

ADAPTER = "adapter_model.safetensors"


def overfits(config_file: Config, tmp_path: Path, *sections: str, **more: object) -> Path:
    """A run whose held-out loss falls at first and then rises above that again."""
    rows = [
        {"prompt": f"q{i}", "completion": f"{word} {word}"}
        for i, word in enumerate(("aaa", "bbb", "ccc", "ddd"))
    ]
    held_out = write_jsonl(tmp_path / "held.jsonl", [{"prompt": "q1", "completion": "ddd aaa"}])
    own = write_jsonl(tmp_path / "own.jsonl", rows)
    settings = {"steps": 24, "eval_every": 4, "learning_rate": 0.01, "batch_size": 4,
                "schedule": "constant", "save_every": 6, **more}  # fmt: skip
    return config_file(
        f"data: {{train: {own}, eval: {held_out}}}", f"train: {json.dumps(settings)}", *sections
    )


def losses_of(run: Path) -> dict[int, float]:
    """Held-out loss by step, without that of the base."""
    return {r["step"]: r["eval_loss"] for r in rows_of(run) if "eval_loss" in r and r["step"]}


def best_step(run: Path) -> int:
    losses = losses_of(run)
    step = min(losses, key=losses.__getitem__)
    assert step != max(losses), f"the last evaluation is the best: {losses}"
    return step


@pytest.mark.parametrize(
    "sections",
    [
        [],
        ["method: dora"],
        ["lora: {init: pissa}"],
        ["lora: {rank_schedule: {2: 2}}"],
        ["method: full", "train: {learning_rate: 0.03}"],
    ],
    ids=["lora", "dora", "pissa", "rank-schedule", "full"],
)
def test_what_is_published_are_the_weights_of_the_best_evaluation(
    config_file: Config, tmp_path: Path, capsys: Capture, sections: list[str]
) -> None:
    config, run = overfits(config_file, tmp_path, *sections), tmp_path / "run"
    assert train(config) == 0
    step = best_step(run)
    said = capsys.readouterr().err
    assert f"published the weights of step {step}" in said
    # A run that ends at the best step publishes these weights because they are its last.
    shorter = f"train.steps={step}"
    assert train(config, "--set", shorter, "--out", str(tmp_path / "short")) == 0
    name = "model/model.safetensors" if "method: full" in sections else f"adapter/{ADAPTER}"
    found, expected = read_tensors(run / name), read_tensors(tmp_path / "short" / name)
    assert found.keys() == expected.keys()
    assert all(found[key].equal(expected[key]) for key in found)


def test_the_best_checkpoint_stays_whatever_is_rotated_away(
    config_file: Config, tmp_path: Path
) -> None:
    config, run = overfits(config_file, tmp_path, keep_checkpoints=1), tmp_path / "run"
    assert train(config) == 0
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"best", "step-000024"}
    best = run / "checkpoints" / "best"
    assert not checkpoint.faults(best)
    assert json.loads((best / "state.json").read_text())["train"]["step"] == best_step(run)
    about = json.loads((run / "adapter" / "loractl.json").read_text())
    assert about["step"] == best_step(run)


def test_keep_last_publishes_the_last_weights_and_keeps_no_best(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config, run = overfits(config_file, tmp_path, keep="last"), tmp_path / "run"
    assert train(config) == 0
    assert json.loads((run / "adapter" / "loractl.json").read_text())["step"] == 24
    assert not (run / "checkpoints" / "best").exists()
    assert "published" not in capsys.readouterr().err


def test_a_run_that_was_cut_anywhere_publishes_the_same(
    config_file: Config, tmp_path: Path
) -> None:
    config, run = overfits(config_file, tmp_path, keep_checkpoints=9), tmp_path / "run"
    assert train(config) == 0
    whole, rows = tree(run / "adapter"), timeless(run)
    for step in (6, 12, 18, 24):
        cut = tmp_path / "cut"
        shutil.copytree(run, cut)
        shutil.rmtree(cut / "adapter")  # best/ stays: it may be of a step that is done again
        for path in checkpoint.published(cut / "checkpoints"):
            if int(path.name[-6:]) > step:
                shutil.rmtree(path)
        assert train(config, "--resume", "--out", str(cut)) == 0
        assert tree(cut / "adapter") == whole and timeless(cut) == rows
        shutil.rmtree(cut)


def test_lost_best_weights_are_named_and_the_last_are_published(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config, run = overfits(config_file, tmp_path), tmp_path / "run"
    assert train(config) == 0
    shutil.rmtree(run / "adapter")
    weights = run / "checkpoints" / "best" / ADAPTER
    weights.write_bytes(weights.read_bytes()[:-1])
    capsys.readouterr()
    assert train(config, "--resume") == 0
    said = capsys.readouterr().err
    assert "best weights are lost" in said and "checkpoints/best" in said
    assert json.loads((run / "adapter" / "loractl.json").read_text())["step"] == 24


def test_a_run_without_the_key_in_its_config_is_resumed_as_it_began(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config, run = overfits(config_file, tmp_path, keep="last"), tmp_path / "run"
    assert train(config) == 0
    last = tree(run / "adapter")
    shutil.rmtree(run / "adapter")
    # As a version that did not know the key wrote it: no key, and less in the state
    path = run / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    new = ("  keep: last\n", "  start_from: null\n")
    assert set(new) <= set(lines)
    path.write_text("".join(line for line in lines if line not in new))
    for directory in checkpoint.published(run / "checkpoints"):
        state = json.loads((directory / "state.json").read_text())
        for key in ("base_loss", "last_loss", "best_loss", "best_step"):
            del state["train"][key]
        (directory / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
        (directory / "manifest.json").unlink()
        checkpoint.seal(directory, state["train"]["step"])
    unset = overfits(config_file, tmp_path)
    assert train(unset, "--set", "train.keep=best", "--resume") == 3
    assert "train.keep: changed from last to best" in capsys.readouterr().err
    assert train(unset, "--resume") == 0
    assert tree(run / "adapter") == last


@pytest.mark.parametrize(
    ("rate", "cause"), [(3.0, "3 is too high (try 0.6)"), (1e-9, "1e-09 is too low (try 5e-09)")]
)
def test_a_run_that_learned_nothing_says_so_with_two_likely_causes(
    config_file: Config, tmp_path: Path, capsys: Capture, rate: float, cause: str
) -> None:
    config = overfits(config_file, tmp_path, learning_rate=rate, steps=4, eval_every=2)
    assert train(config) == 0
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "learned nothing" in x]
    assert "only 4 optimizer steps" in line and line.endswith(f"train.learning_rate {cause}")
    # At the low rate the two evaluations differ in their last digits alone.
    steps = (4,) if rate > 1 else (2, 4)
    assert json.loads((tmp_path / "run/adapter/loractl.json").read_text())["step"] in steps


def test_a_run_that_learned_says_nothing_of_the_kind(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    assert train(overfits(config_file, tmp_path)) == 0
    assert "learned nothing" not in capsys.readouterr().err


def test_early_stopping_is_named_as_the_cause_where_it_ended_the_run(
    config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config = overfits(config_file, tmp_path, learning_rate=5.0, eval_every=1, early_stopping=1)
    assert train(config) == 0
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "learned nothing" in x]
    assert "train.early_stopping: 1 ended the run after step" in line and "of 24" in line
    assert "optimizer step" not in line
