"""What the benchmarks measure and compute, and that what they compare trains the same rows."""

import ast
import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bench import (
    jobs,
    limit,
    naive,
    ops,
    other,
    peers,
    report,
    rows,
    run,
    speed,
    tokenise,
    twins,
)
from bench.jobs import LIMIT, LORACTL
from bench.workloads import WORKLOADS
from transformers import AutoModelForCausalLM

from loractl.cli.main import main
from loractl.data import batches
from loractl.lora.inject import adaptable
from loractl.records import Example


def losses_of(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def python_scripts() -> list[Path]:
    directory = Path(__file__).parents[2] / "scripts"
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    texts = {path: path.read_bytes() for path in files}
    return [
        path for path, text in texts.items()
        if path.suffix == ".py" or text.startswith(b"#!/usr/bin/env python3")
    ]  # fmt: skip


@pytest.mark.parametrize("script", python_scripts(), ids=lambda path: path.name)
def test_a_script_names_only_what_there_is(script: Path) -> None:
    """Also what it imports within its functions, which no start of it would try."""
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loractl"):
            for name in (alias.name for alias in node.names):
                if not hasattr(importlib.import_module(node.module or ""), name):
                    importlib.import_module(f"{node.module}.{name}")


def measured(speed: float, *, loss: float = 1.0) -> dict[str, object]:
    """A run of four steps whose first two are slow."""
    seconds = [9.0, 9.0, 100 / speed, 100 / speed]
    peak, losses = 2**30, [loss] * 4
    return {"tokens": [100] * 4, "seconds": seconds, "losses": losses, "peak_rss_bytes": peak}


def test_only_steps_after_the_second_count() -> None:
    assert run.tokens_per_s(measured(50)) == pytest.approx(50)
    assert run.tokens_per_s({"tokens": [100, 100], "seconds": [9.0, 2.0]}) == 50


def test_the_share_around_steps_is_what_the_rows_took_longer_to_arrive() -> None:
    found = measured(50) | {"arrived": [20.0, 30.0, 32.5, 35.0]}
    assert run.around_steps(found) == pytest.approx(1 - 4 / 5)


def test_the_table_has_medians_the_share_of_the_limit_and_the_speedup_over_each_peer() -> None:
    runs = {
        LIMIT: [{"tokens_per_s": 200.0, "peak_rss_bytes": 1}],
        LORACTL: [run.summary(measured(speed)) for speed in (90, 100, 170)],
        "plain": [run.summary(measured(40))],
    }
    table = report.speed_table(runs).splitlines()
    assert table[3] == "| loractl | 100 (90, 170) | 0.50 |  | 1.00 GiB |  |"
    assert table[4] == "| plain | 40 | 0.20 | 2.50x | 1.00 GiB |  |"


def test_peers_of_each_model_are_compared_with_loractl_on_that_model() -> None:
    speeds = {"a: loractl": 100, "a: plain": 50, "b: loractl": 30, "b: plain": 20}
    table = report.speed_table({name: [run.summary(measured(x))] for name, x in speeds.items()})
    assert "| a: plain | 50 |  | 2.00x |" in table
    assert "| b: plain | 20 |  | 1.50x |" in table


def test_first_losses_that_differ_are_told() -> None:
    runs = {"ours": [measured(1, loss=2.0)], "plain": [measured(1, loss=2.00005)]}
    assert speed.unequal(runs, [["ours", "plain"]], 1e-4) == []
    (told,) = speed.unequal(runs, [["other"], ["ours", "plain"]], 1e-5)
    assert "plain 2.000050" in told
    assert speed.farthest(runs, [["ours", "plain"]]) == pytest.approx(5e-5)
    assert speed.farthest(runs, [["ours", "other"]]) is None
    broken = {"ours": [measured(1)], "plain": [measured(1, loss=float("nan"))]}
    assert speed.unequal(broken, [["ours", "plain"]], 1e-4)


def test_epochs_are_told_apart_and_their_first_two_steps_left_out() -> None:
    found = {
        "epochs": [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0],
        "tokens": [100] * 8,
        "seconds": [9.0, 9.0, 2.0, 2.0, 9.0, 9.0, 1.0, 1.0],
    }
    assert run.epochs(found) == (50.0, 100.0)
    assert run.summary(found)["epoch_tokens_per_s"] == [50.0, 100.0]


def test_starts_are_told_as_medians_with_their_number() -> None:
    table = report.start_table({"ours": [{"start_s": one} for one in (5.0, 9.0, 5.5)]})
    assert table.splitlines()[2] == "| ours | 5.50 (5.00, 9.00) | 3 |"


def test_workloads_are_chosen_by_name_and_their_jobs_by_a_part_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert speed.wanted_jobs(["chats", "long/2048", "long/8192"]) == {
        "chats": [],
        "long": ["2048", "8192"],
    }
    assert list(speed.wanted_jobs(["all"])) == list(WORKLOADS)
    with pytest.raises(SystemExit, match="2"):
        speed.wanted_jobs(["chat"])
    assert f"expected one of {'; '.join(WORKLOADS)}" in capsys.readouterr().err


def test_text_rows_are_longer_than_asked_for(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": f"row {i} of some words"}] for i in range(9)]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"messages": one}) for one in chats), "utf-8")
    out = jobs.texts_file(data, tmp_path / "out.jsonl", length=50, rows=3)
    texts = [json.loads(line)["text"] for line in out.read_text("utf-8").splitlines()]
    assert len(texts) == 3 and all(len(text) >= 300 for text in texts)
    assert "user" not in texts[0]


def test_rows_for_peers_are_the_examples_of_a_packed_and_padded_batch() -> None:
    examples = [Example([5, 6, 7], [-100, 6, 7], 1), Example([8, 9], [-100, 9], 2)]
    longer = Example([1, 2, 3, 4, 5, 6], [-100, 2, 3, 4, 5, 6], 3)
    batch = batches.collate([examples, [longer]])
    found = [Example(row["ids"], row["labels"], 0) for row in rows.rows_of(batch)]
    assert [(e.ids, e.labels) for e in found] == [(e.ids, e.labels) for e in [*examples, longer]]


@pytest.mark.parametrize("by", ["torch", "loractl"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_limit_multiplies_by_every_layer_that_can_carry_an_adapter_but_the_head(
    base: Callable[..., Path], architecture: str, by: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base(architecture), dtype=torch.float32)
    head = model.get_output_embeddings()
    shapes = [tuple(W.shape) for W in limit.weights(model, head)]
    kinds = [kind for name, kind in adaptable(model).items() if name != "lm_head"]
    assert len(shapes) == sum(kind in ("linear", "conv1d") for kind in kinds)
    found = limit.measure(model, head, tokens=8, trained=5, by=by)
    assert found["tokens_per_s"] == 8 / (found["blocks_s"] + found["head_s"])  # type: ignore[operator]


def test_a_plain_loop_over_the_rows_written_for_it_starts_at_our_loss(
    config_file: Callable[..., Path],
    base: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, written = config_file("train: {steps: 1}"), tmp_path / "rows.json"
    assert main(["train", str(config)]) == 0
    monkeypatch.setattr("sys.argv", ["", str(config), "--out", str(written), "--steps", "1"])
    rows.main()
    (step,) = json.loads(written.read_text("utf-8"))["steps"]
    assert len(step) > 4  # examples of four packed rows
    model = AutoModelForCausalLM.from_pretrained(base(), dtype=torch.float32)
    clock = peers.loop(model, [step], 1e-4)
    assert clock.losses[0] == pytest.approx(losses_of(tmp_path / "run")[0], abs=1e-5)
    assert clock.tokens == [sum(len(row["ids"]) for row in step)]


def test_the_naive_formula_trains_as_ours(config_file: Callable[..., Path], tmp_path: Path) -> None:
    config = config_file(
        "train: {schedule: constant, warmup: 0, max_grad_norm: 1000000000.0, learning_rate: 0.001}"
    )
    assert main(["train", str(config)]) == 0
    ours, plain = losses_of(tmp_path / "run"), naive.curves(config, 4)["losses"]
    assert ours[3] < ours[0] - 1e-3
    found = report.curves_of(ours, plain)
    assert found["worst"] < 1e-5, f"step {found['worst_at_step']}"


@pytest.mark.slow
def test_what_is_measured_of_the_real_command_are_all_of_its_steps(
    base: Callable[..., Path], train_file: Path, tmp_path: Path
) -> None:
    setting = jobs.Setting(base(), train_file, "float32", tmp_path, steps=3)
    config = jobs.config_of(setting, train_file, length=128, rows=1)
    found = jobs.ours(setting, "w", LORACTL, config).run(0)
    assert len(found["losses"]) == len(found["seconds"]) == len(found["arrived"]) == 3
    assert 0 < found["start_s"] < found["arrived"][0]
    wrong = config | {"data": config["data"] | {"train": "absent.jsonl"}}
    with pytest.raises(run.Failed, match=r"absent\.jsonl"):
        run.train(wrong, tmp_path / "wrong", cache=setting.cache)


@pytest.mark.parametrize("kind", other.KINDS)
def test_models_of_other_architectures_can_be_trained(
    kind: str, base: Callable[..., Path], config_file: Callable[..., Path], tmp_path: Path
) -> None:
    made = tmp_path / kind
    other.make(kind, str(base()), made, dtype="float32", width=32, layers=1)
    assert main(["train", str(config_file("train: {steps: 1}", model=made))]) == 0


@pytest.mark.parametrize("op", twins.OPS)
def test_each_op_agrees_with_its_naive_twin(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "VOCABULARY", 300)
    torch.manual_seed(0)
    found = ops.run(twins.OPS[op](torch.float32, 40), rounds=1)
    assert found["off"] <= twins.WITHIN[torch.float32]


def test_a_difference_is_seen_in_any_tensor() -> None:
    ours, theirs = [torch.ones(3), torch.ones(2)], [torch.ones(3), torch.tensor([1.0, 4.0])]
    assert ops.difference(ours, theirs) == 0.75


def test_chats_to_tokenise_are_as_long_as_asked_and_no_two_alike(tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    talk = [{"role": "user", "content": " ".join(map(str, range(40)))}]
    source.write_text(json.dumps({"messages": talk}) + "\n", "utf-8")
    made = [tmp_path / name for name in ("a", "b")]
    sizes = {tokenise.write_rows(path, source, 2000, random.Random(5)) for path in made}
    assert len(sizes) == 1 and made[0].read_bytes() == made[1].read_bytes()
    lines = made[0].read_text("utf-8").splitlines()
    assert sizes == {made[0].stat().st_size} and 2000 <= sizes.pop() < 2000 + len(lines[0]) + 1
    words = [json.loads(line)["messages"][0]["content"].split() for line in lines]
    assert len({tuple(one) for one in words}) == len(lines) > 5
    assert len({tuple(sorted(one)) for one in words}) == 1


def test_ways_to_tokenise_are_compared_turn_by_turn() -> None:
    ways = {
        tokenise.ONE_CORE: [
            {"seconds": s, "start_s": 0.0, "cpu_s": 9.0} for s in (10.0, 20.0, 40.0)
        ],
        "two processes": [{"seconds": s, "start_s": 2.0, "cpu_s": 12.0} for s in (5.0, 12.5, 16.0)],
    }
    shown = tokenise.table({"megabytes": 40.0, "model": "m", "ways": ways})
    assert "| two processes | 3.20 (2.50, 8.00) | 2.00x | 2.0 s | 12 s |" in shown
