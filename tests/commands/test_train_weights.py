"""`loractl train` on turns with weights: the loss of the formula, and the same run if cut."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from loractl.cli.main import main
from tests.commands.conftest import HARD, Capture, Config, assert_refused, assert_same_run
from tests.runs import rows_of, timeless, train
from tests.tiny import TEXT, write_jsonl

Row = dict[str, Any]
ONE_STEP = "train: {steps: 1, batch_size: 12, learning_rate: 1e-3}"


def rows_with(*marks: dict[str, Any]) -> list[Row]:
    """Rows of one to three turns, whose answers are marked by these in turn."""
    made: list[Row] = []
    n = 0
    for i in range(12):
        turns: list[Row] = []
        for k in range(1 + i % 3):
            n += 1
            turns += [
                {"role": "user", "content": f"What is {i} plus {k}?"},
                {"role": "assistant", "content": TEXT[n % len(TEXT)], **marks[n % len(marks)]},
            ]
        made.append({"messages": turns})
    return made


WEIGHTS = [{"weight": weight} for weight in (0.5, 2, 0, 0.1)] + [{}]


def formula(directory: Path, rows: list[Row]) -> dict[int, tuple[float, float, int]]:
    """(sum of w * nll, sum of w, trained tokens) of each row, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def ids_of(messages: list[Row], **options: Any) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    found = {}
    for line, row in enumerate(rows, 1):
        turns, (total, weight, tokens) = row["messages"], (0.0, 0.0, 0)
        ids = ids_of(turns)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for number in range(1, len(turns), 2):
            own = turns[number].get("weight", 1)
            first = len(ids_of(turns[:number], add_generation_prompt=True))
            last = ids.index(tokenizer.eos_token_id, first)
            for place in range(first, last + 1 if own else first):
                total -= own * float(logits[place - 1, ids[place]])
                weight, tokens = weight + own, tokens + 1
        found[line] = (total, weight, tokens)
    return found


def mean_of(found: dict[int, tuple[float, float, int]]) -> float:
    return sum(one[0] for one in found.values()) / sum(one[1] for one in found.values())


def config_of(config_file: Config, tmp_path: Path, rows: list[Row], *sections: str) -> Path:
    file = write_jsonl(tmp_path / "weighted.jsonl", rows)
    return config_file(f"data: {{train: {file}, packing: false}}", *sections)


@pytest.mark.parametrize(
    "sections",
    [
        (),
        ("train: {batch_size: 3, gradient_accumulation: 4}",),
        ("data: {packing: true}",),
        ("train: {kernels: plain}",),
        (
            "train: {batch_size: 4, gradient_accumulation: 3}",
            "data: {packing: true, max_length: 128}",
        ),
    ],
)
def test_the_first_step_has_the_loss_of_the_formula(
    sections: tuple[str, ...], base: Any, config_file: Config, tmp_path: Path
) -> None:
    rows = rows_with(*WEIGHTS)
    assert train(config_of(config_file, tmp_path, rows, ONE_STEP, *sections)) == 0
    (step,) = rows_of(tmp_path / "run")
    found = formula(base("llama"), rows)
    assert step["loss"] == pytest.approx(mean_of(found), rel=1e-6)
    assert step["trained_tokens"] == sum(tokens for *_, tokens in found.values())
    unweighted = sum(one[0] for one in formula(base("llama"), rows_with({})).values())
    assert step["loss"] != pytest.approx(unweighted / step["trained_tokens"], rel=1e-3)


def test_a_cut_run_goes_on_byte_for_byte(
    config_file: Config, tmp_path: Path, stop_after: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = config_of(config_file, tmp_path, rows_with(*WEIGHTS), *HARD)
    assert train(config, "--out", str(tmp_path / "whole")) == 0
    stop_after(3)
    assert train(config) == 130
    monkeypatch.undo()
    assert train(config, "--resume") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def trained_on(
    config_file: Config, tmp_path: Path, rows: list[Row], name: str
) -> tuple[list[Row], dict[str, torch.Tensor]]:
    """The metrics of a short run on the rows, and its adapter."""
    config = config_of(config_file, tmp_path, rows, "train: {steps: 4, learning_rate: 1e-3}")
    assert train(config, "--out", str(tmp_path / name)) == 0
    return timeless(tmp_path / name), load_file(
        tmp_path / name / "adapter" / "adapter_model.safetensors"
    )


def test_weight_0_is_untrained_and_weight_1_is_as_without(
    config_file: Config, tmp_path: Path
) -> None:
    marks: tuple[list[Row], ...] = (
        [{"weight": 0}, {"weight": 1}, {}],
        [{"weight": 0.0}, {"weight": 1.0}, {"weight": 1}],
        [{"train": False}, {}, {"loss": 1}],
        [{"mask": 1}, {"mask": 0}, {"trainable": 1}],
    )
    found = [
        trained_on(config_file, tmp_path, rows_with(*of_rows), str(n))
        for n, of_rows in enumerate(marks)
    ]
    for metrics, adapter in found[1:]:
        assert metrics == found[0][0]
        assert all(torch.equal(adapter[name], one) for name, one in found[0][1].items())


def test_all_weights_2_is_all_weights_1(config_file: Config, tmp_path: Path) -> None:
    ones = trained_on(config_file, tmp_path, rows_with({}), "ones")
    twos = trained_on(config_file, tmp_path, rows_with({"weight": 2}), "twos")
    losses = [[row["loss"] for row in metrics] for metrics, _ in (ones, twos)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for name, one in ones[1].items():
        torch.testing.assert_close(twos[1][name], one, rtol=0, atol=1e-6)


def test_changed_weights_are_other_tokens_to_a_resumed_run(
    config_file: Config, tmp_path: Path, stop_after: Callable[..., None], capsys: Capture
) -> None:
    config = config_of(config_file, tmp_path, rows_with({"weight": 0.5}, {}))
    stop_after(1)
    assert train(config) == 130
    config_of(config_file, tmp_path, rows_with({"weight": 0.25}, {}))
    assert train(config, "--resume") == 3
    assert "tokens of the rows: the content changed since the run" in capsys.readouterr().err


@pytest.mark.parametrize("weight", [-0.5, "0.5", True, 1e99])
def test_a_wrong_weight_is_refused_with_its_line_and_place(
    weight: Any, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    rows = rows_with({})
    rows[7]["messages"][1]["weight"] = weight
    assert train(config_of(config_file, tmp_path, rows)) == 2
    where = f"{tmp_path / 'weighted.jsonl'}:8: messages[1].weight is {weight!r}, expected "
    assert_refused(capsys, where)
    assert not (tmp_path / "run").exists()


def test_held_out_rows_and_eval_have_the_weighted_mean(
    base: Any, config_file: Config, tmp_path: Path, adapter_dir: Any, capsys: Capture
) -> None:
    rows = rows_with(*WEIGHTS)
    held = write_jsonl(tmp_path / "held.jsonl", rows)
    assert train(config_file(ONE_STEP, f"data: {{eval: {held}}}")) == 0
    found = {n: one for n, one in formula(base("llama"), rows).items() if one[2]}
    first = rows_of(tmp_path / "run")[0]
    assert first["step"] == 0 and first["eval_loss"] == pytest.approx(mean_of(found), rel=1e-6)
    capsys.readouterr()
    words = [f"tuned={adapter_dir(base('llama'))}", "--data", str(held), "--dtype", "float32"]
    words += ["--metrics", "loss", "--rows", str(tmp_path / "rows.jsonl"), "--json"]
    assert main(["eval", *words]) == 0
    of_base = json.loads(capsys.readouterr().out)[0]
    assert of_base["loss"]["value"] == pytest.approx(mean_of(found), rel=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["model"] == "base" and "tokens" in line]
    assert [line["row"] for line in lines] == list(found)
    for line in lines:
        total, weight, tokens = found[line["row"]]
        assert line["loss_sum"] == pytest.approx(total, rel=1e-5) and line["tokens"] == tokens
        assert line.get("weight", tokens) == pytest.approx(weight, rel=1e-6)
        assert ("weight" in line) == (weight != tokens)
    assert {"weight" in line for line in lines} == {True, False}
