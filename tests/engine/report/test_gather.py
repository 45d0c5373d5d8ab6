"""The content of a page from the files of a run, in whatever state they are."""

import json
import shutil
from pathlib import Path

import pytest

from loractl.artifacts.run.directory import RunDir
from loractl.artifacts.run.lock import RunLock
from loractl.engine.report.gather import gather
from loractl.errors import ConfigError
from loractl.reports.run_page.content import FINISHED, STOPPED, TRAINING
from loractl.reports.run_page.page import page_of_run
from tests.engine.report.conftest import Config
from tests.runs import rows_of, train


def test_everything_of_a_finished_run_is_found(reported: Path, base: object) -> None:
    run = gather(RunDir(reported))
    assert (run.name, run.state, run.absent) == ("run", FINISHED, {})
    assert run.settings["lora.rank"] == 4 and run.metrics == rows_of(reported)
    assert {one.key for one in run.changed} >= {"lora.rank", "data.eval", "train.steps"}
    assert run.accounts.keys() == {"train", "eval"} and run.about["step"] == 2
    assert len(run.updates) == 14 == len(run.notes.weights)
    assert run.updates.keys() == run.notes.weights.keys()
    planned = run.estimate["methods"]["lora"]["trainable_parameters"]
    assert planned == sum(u["rank"] * (u["d_in"] + u["d_out"]) for u in run.updates.values())
    last = [row["eval_loss"] for row in run.metrics if "eval_loss" in row][-1]
    assert run.held_out is not None and run.held_out.mean == pytest.approx(last)
    assert [(one.name, one.holds) for one in run.proofs] == [("resume", True)]
    assert "adapter/adapter_model.safetensors" in [one.name for one in run.files]
    page = page_of_run(run)
    assert page == (reported / "report.html").read_text()


def test_the_held_out_loss_is_that_of_the_weights_published(
    config_file: Config, tmp_path: Path
) -> None:
    high = "train: {report: true, steps: 6, eval_every: 1, learning_rate: 0.5}"
    assert train(config_file("data: {eval: 0.3}", high)) == 0
    run = gather(RunDir(tmp_path / "run"))
    by_step = {row["step"]: row["eval_loss"] for row in run.metrics if "eval_loss" in row}
    assert run.held_out is not None
    assert run.held_out.mean == pytest.approx(by_step[run.about["step"]])


def test_a_stopped_run_shows_its_newest_checkpoint(reported: Path) -> None:
    for name in ("adapter", "report.json", "report.html"):
        path = reported / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = gather(RunDir(reported))
    assert run.state == STOPPED and len(run.updates) == 14 and run.files == []
    assert run.estimate and run.held_out is not None
    with RunLock(reported) as lock:
        lock.keep()
        assert gather(RunDir(reported)).state == TRAINING
    shutil.rmtree(reported / "checkpoints")
    bare = gather(RunDir(reported))
    assert bare.updates == {} and bare.proofs == [] and bare.held_out is None
    assert "Nothing has been saved yet." in page_of_run(bare)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("data.json", "accounts"), ("report.json", "notes"), ("adapter/loractl.json", "about"),
        ("adapter/adapter_model.safetensors", "updates"),
    ],
)  # fmt: skip
def test_a_damaged_file_leaves_out_its_section_with_the_reason(
    name: str, part: str, reported: Path
) -> None:
    (reported / name).write_text("[")
    run = gather(RunDir(reported))
    assert run.absent.keys() - {"updates"} == {part} - {"updates"}  # which need loractl.json
    assert Path(name).name in run.absent[part]
    assert f"Not shown: {run.absent[part]}".split("'")[0] in page_of_run(run)


def test_notes_of_another_form_are_left_out(reported: Path) -> None:
    (reported / "report.json").write_text(json.dumps({"answers": 3}))
    assert "answers" in gather(RunDir(reported)).absent["notes"]


def test_a_damaged_checkpoint_cannot_be_resumed_and_the_page_says_so(reported: Path) -> None:
    state = reported / "checkpoints" / "step-000002" / "state.json"
    state.write_text(state.read_text() + " ")
    (proof,) = gather(RunDir(reported)).proofs
    assert not proof.holds and "state.json" in proof.says


def test_a_base_that_is_gone_leaves_out_what_is_computed_from_it(reported: Path) -> None:
    about = json.loads((reported / "adapter" / "loractl.json").read_text())
    about["base"]["name_or_path"] = "/gone"
    (reported / "adapter" / "loractl.json").write_text(json.dumps(about))
    config = (reported / "config.yaml").read_text()
    base = json.loads((reported / "adapter" / "adapter_config.json").read_text())
    where = base["base_model_name_or_path"]
    (reported / "config.yaml").write_text(config.replace(where, "/gone-too"))
    run = gather(RunDir(reported))
    assert run.estimate == {} and "/gone-too" in run.absent["estimate"]
    assert "computed from the shape of the base" in page_of_run(run)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        gather(RunDir(tmp_path / "none"))
