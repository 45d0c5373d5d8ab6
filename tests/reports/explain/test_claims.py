"""Figures that go around: the page says of them what was published, and what estimate says."""

import json

import pytest

from loractl.cli.main import main
from loractl.reports.explain.claims import CLAIMS, claims, computed
from loractl.reports.explain.texts import LANGUAGES, texts
from tests import published


def test_the_counts_are_those_that_others_published() -> None:
    values = computed()
    known = {
        (row["model"], tuple(row["target_modules"])): row["value"]
        for row in published.rows("trainable_params")
        if row["model"] in ("Llama-2-7B", "Llama-2-13B") and row["rank"] == 8
    }
    assert values["qv"] == f"{known['Llama-2-7B', ('q_proj', 'v_proj')]:,}"
    # half of q and v, where both are as wide
    assert values["q13"] == f"{known['Llama-2-13B', ('q_proj', 'v_proj')] // 2:,}"
    with_head = next(value for (model, targets), value in known.items() if "lm_head" in targets)
    assert values["all"] == f"{with_head - 8 * (4096 + 32000):,}"


def test_memory_and_work_are_those_of_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--model", "7B", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    full, lora = (found["methods"][name]["gpu_bytes"] for name in ("full", "lora"))
    values = computed()
    assert values["full"] == f"{full / 1024**3:.2f} GiB" and float(
        values["memory_times"]
    ) == pytest.approx(full / lora, abs=0.05)
    assert values["work"] == f"{100 * found['flops_per_step']['lora_over_full']:.3g}%"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_each_claim_has_its_answer_filled_in(lang: str) -> None:
    found = list(claims(texts(lang)["checked"]))
    assert len(found) == len(CLAIMS)
    assert all(said and answer and "{" not in answer for said, answer in found)
