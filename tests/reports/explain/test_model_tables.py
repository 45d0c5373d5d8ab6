"""What the page knows of each model is what estimate and recommend say of it."""

from dataclasses import replace

import pytest

from loractl.lora.ranks import UnmatchedError
from loractl.models.shape import read as shapes
from loractl.models.shape.sizes import SIZES
from loractl.planning import recommend
from loractl.planning.recommend import Rows
from loractl.planning.request import Request, memory_of
from loractl.reports.explain import model_tables

STOPS = (1, 2, 8, 64)


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the known sizes, for speed."""
    monkeypatch.setattr(model_tables, "SIZES", {size: SIZES[size] for size in ("0.5B", "1B")})


def test_the_asked_model_comes_first_unless_it_is_one_of_the_sizes() -> None:
    shape = shapes.named("1B")
    assert list(model_tables.all_models("1B", shape, Request(), STOPS)) == ["0.5B", "1B"]
    found = model_tables.all_models("mine", shape, Request(), STOPS)
    assert list(found) == ["own", "0.5B", "1B"] and found["own"]["name"] == "mine"


def test_targets_of_its_own_are_kept_for_the_asked_model_alone() -> None:
    request = Request(
        target_modules=["q_proj", "down_proj"], layers="0-3", modules_to_save=("lm_head",)
    )
    found = model_tables.all_models("mine", shapes.named("1B"), request, STOPS)
    assert list(found["own"]["targets"]) == ["own", "minimal", "attention", "all-linear"]
    assert list(found["0.5B"]["targets"]) == ["minimal", "attention", "all-linear"]
    kinds = found["own"]["kinds"]
    chosen = found["own"]["targets"]["own"]["chosen"]
    assert [(kinds[index]["name"], layers) for index, layers, _ in chosen] == [
        ("q_proj", 4), ("down_proj", 4),
    ]  # fmt: skip
    assert found["own"]["beside"] > 0 == found["0.5B"]["beside"]
    assert found["own"]["targets"]["minimal"]["chosen"][0][1] is None  # all layers


def test_a_preset_that_matches_nothing_is_left_out_unless_it_was_asked_for() -> None:
    config = {
        "model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 320,
    }  # fmt: skip
    shape = shapes.from_config(config, where="bloom")
    shape = replace(
        shape,
        modules=tuple(one for one in shape.modules if "attention" not in one.path),
    )
    found = model_tables.table_of("b", "b", shape, Request(), STOPS)
    assert list(found["targets"]) == ["all-linear"]
    with pytest.raises(UnmatchedError):
        model_tables.table_of("b", "b", shape, Request(target_modules="minimal"), STOPS)


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_memory_of_adalora_is_there_where_it_is_asked_for(method: str) -> None:
    request = Request(method=method, target_modules="minimal")
    found = model_tables.table_of("1B", "1B", shapes.named("1B"), request, STOPS)
    wanted = {"lora", "dora", "qlora"} | ({"adalora"} if method == "adalora" else set())
    assert set(found["targets"]["minimal"]["memory"]) == wanted


def test_a_variant_on_a_packed_base_is_counted_on_one() -> None:
    shape = shapes.named("0.5B")
    request = Request(method="dora", quantization="nf4", target_modules="minimal")
    found = model_tables.table_of("x", "x", shape, request, (1, 2))["targets"]["minimal"]["memory"]
    exact = memory_of(shape, replace(request, rank=2), "qlora", checkpointing=False)
    start, slope = found["dora"][0]["update"]["weights"]
    assert start + 2 * slope == exact.phases["update"]["weights"]
    assert found["lora"][0]["update"]["weights"][0] > 2 * start


@pytest.mark.parametrize("size", ["0.5B", "13B", "70B"])
def test_recommendations_are_those_of_recommend(size: str) -> None:
    shape = shapes.named(size)
    found = model_tables.table_of(size, size, shape, Request(), (1, 2))["recommended"]
    for task in recommend.RANKS:
        for name, rows in model_tables.ROWS.items():
            exact = recommend.choices(task, shape, None if rows is None else Rows(rows))
            for key, value in found[task][name].items():
                assert value == exact[key].value
    ranks = [found["medium"][name]["rank"] for name in ("few", "some", "many")]
    assert ranks == sorted(ranks) and ranks[0] < ranks[-1]
