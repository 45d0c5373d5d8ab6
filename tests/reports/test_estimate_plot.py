"""The plot of `estimate` answers what its bars leave open."""

import json
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from loractl.reports.estimate_plot import draw_estimate, memory_notes


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["estimate", "--model", "7B", "--seq", "2048", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_dtype_of_full_is_the_width_of_its_weights(plan: dict[str, Any]) -> None:
    methods, n = plan["methods"], plan["model"]["parameters"]
    assert "in float32" in next(memory_notes(methods, n))
    assert "in 16 bits" in next(memory_notes(methods, 2 * n))


def test_gradients_are_explained_only_where_they_occur(plan: dict[str, Any]) -> None:
    methods, n = plan["methods"], plan["model"]["parameters"]
    _, note = memory_notes(methods, n)
    assert note.startswith("gradients (25.10 GiB in full)")
    methods["full"]["peak_parts_bytes"]["gradients"] = 1
    assert len(list(memory_notes(methods, n))) == 1


def test_a_quantized_base_keeps_the_activations_of_a_plain_one(plan: dict[str, Any]) -> None:
    lora, qlora = (plan["methods"][name]["peak_parts_bytes"] for name in ("lora", "qlora"))
    assert qlora["activations"] == lora["activations"]


def test_the_picture_has_the_percentage_and_no_path(plan: dict[str, Any], tmp_path: Path) -> None:
    plan["model"]["name"] = "/somewhere/deep/tiny-model"
    draw_estimate(tmp_path / "plan.svg", plan)
    text = (tmp_path / "plan.svg").read_text()
    share = plan["methods"]["lora"]["percent_of_base"]
    assert f"({share:.3g}% of the base)" in text
    assert "tiny-model: rank" in text and "somewhere" not in text
