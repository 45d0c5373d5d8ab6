"""What a run cost beside full fine-tuning: the figures of `loractl estimate`, and nothing else."""

from dataclasses import replace

from loractl import text
from loractl.models.shape.read import named
from loractl.planning import estimate
from loractl.planning.request import Request
from loractl.reports.run_page.costs import costs
from loractl.reports.run_page.notes import Notes
from tests.reports.run_page.made import content


def test_the_cards_have_the_figures_of_planning() -> None:
    run = content()
    found, planned = costs(run), run.estimate
    assert found is not None
    lora, full = planned["methods"]["lora"], planned["methods"]["full"]
    parameters, memory, storage = found.cards
    assert parameters.value == f"{lora['percent_of_base']:.2f}%"
    assert f"{lora['trainable_parameters']:,} trained" in parameters.beside
    assert memory.value == text.size(lora["cpu_rss_bytes"])
    assert memory.beside == f"full fine-tuning would take {text.size(full['cpu_rss_bytes'])}"
    assert "measured at its peak: 1.00 GiB" in memory.remark
    assert storage.value == text.size(planned["disk"]["adapter_bytes"])
    assert text.size(planned["disk"]["model_bytes"]) in storage.beside


def test_on_a_gpu_memory_is_that_of_the_gpu() -> None:
    run = replace(content(), notes=Notes(environment={"device": "cuda (H200)"}), metrics=[])
    found = costs(run)
    assert found is not None
    lora = run.estimate["methods"]["lora"]
    assert (found.cards[1].value, found.cards[1].remark) == (
        text.size(lora["gpu_bytes"]),
        "computed",
    )


def test_a_bar_that_is_too_short_to_see_says_so_and_the_other_scale_shows_it() -> None:
    found = costs(content())  # 20 million of 6.7 billion
    assert found is not None and found.is_unseen.startswith("The lower bar is 0.95 pixels long")
    small = estimate.report("m", named("0.5B"), Request(rank=64))
    seen = costs(replace(content(), estimate=small))
    assert seen is not None and seen.is_unseen == ""


def test_full_fine_tuning_is_beside_lora() -> None:
    full = estimate.report("m", named("7B"), Request(method="full", rank=4))
    settings = {**content().settings, "method": "full", "lora.rank": 4}
    run = replace(content(), estimate=full, settings=settings)
    found = costs(run)
    assert found is not None
    assert found.cards[0].value == f"{full['model']['parameters']:,}"
    assert found.cards[1].beside.startswith("LoRA of rank 4 would take")
    assert "LoRA of rank 4</text>" in found.linear
    assert found.cards[2].value == text.size(full["disk"]["model_bytes"])


def test_without_a_shape_there_is_nothing_to_compute() -> None:
    assert costs(replace(content(), estimate={})) is None
