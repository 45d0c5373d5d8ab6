"""Settings of a first run: enough steps, small micro-batches, an honest share held out."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from loractl.data.survey import SHAPES, Survey
from loractl.errors import DataError
from loractl.models.shape import read as shapes
from loractl.planning import first_run
from loractl.planning.first_model import FirstModel
from loractl.planning.recommend import ENOUGH_STEPS, MOST_EPOCHS, usual_rate

MODEL = FirstModel("own/model", "", None, shapes.named("7B"), 2048)


def rows(lengths: Sequence[int], *, format: str = "messages", seed: int = 0) -> Survey:
    rng = random.Random(seed)
    return Survey(
        path="rows.jsonl", format=format, columns={}, unused=(), lengths=sorted(lengths),
        places=sorted(rng.random() for _ in lengths), estimated=False, answers=9, turns=1,
        shape="chat",
    )  # fmt: skip


def settings(data: Survey) -> list[first_run.Setting]:
    return first_run.settings(MODEL, data, "lora", "chat")


def chosen(data: Survey, method: str = "lora", shape: str = "chat") -> dict[str, Any]:
    return {one.key: one.value for one in first_run.settings(MODEL, data, method, shape)}


@pytest.mark.parametrize("seed", range(30))
def test_any_rows_get_steps_a_share_and_micro_batches(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_run, "has_gpu", lambda: False)
    rng = random.Random(seed)
    n, most = rng.choice((8, 30, 90, 173, 400, 1500, 12_000)), rng.choice((40, 300, 1900, 5000))
    data = rows([rng.randint(10, most) for _ in range(n)], seed=seed)
    found = chosen(data)
    whole, data = data, data.within(2048)  # rows above the model's positions are left out
    n, held = data.rows, data.n_below(found["data.eval"])
    assert max(1, min(20, n // 4)) <= held <= max(0.25 * n, 22)
    assert held >= min(0.1 * n, 2000)
    batch, window = found["train.batch_size"], found["train.batch_size"]
    window *= found["train.gradient_accumulation"]
    steps = -(-(n - held) // window) * found["train.epochs"]
    assert steps >= ENOUGH_STEPS or found["train.epochs"] == MOST_EPOCHS
    assert batch == 1 or sum(data.lengths[-batch:]) <= 2048
    twice = sum(data.lengths[-2 * batch :])
    assert window == batch or twice > 2048, "a larger micro-batch would have fitted"
    assert found["data.max_length"] >= min(whole.longest, 2048)
    assert ("data.too_long" in found) == (whole.longest > 2048)
    assert found["data.packing"] is False


def test_a_share_is_found_however_rows_fall() -> None:
    for seed in range(200):
        data = rows([9] * random.Random(seed).randint(4, 500), seed=seed)
        share = first_run.held_out_share(data)
        assert share is not None
        assert min(20, data.rows // 4) <= data.n_below(share) <= max(22, 0.25 * data.rows)


def test_rows_that_are_left_out_as_too_long_are_not_held_out() -> None:
    data = rows([100] * 100 + [9999] * 100)
    places = [0.5 + n / 200 for n in range(100)] + [n / 200 for n in range(100)]
    data = Survey(**{**data.__dict__, "places": places})  # every long row comes first
    share = chosen(data)["data.eval"]
    assert 20 <= data.within(2048).n_below(share) <= 25
    (why,) = [one.why for one in settings(data) if one.key == "data.eval"]
    assert why.endswith(f"{data.within(2048).n_below(share)} of 100")


def test_rows_that_are_all_too_long_are_refused() -> None:
    with pytest.raises(DataError, match="all 3 rows are longer than the 2,048 positions of own/m"):
        chosen(rows([3000] * 3))
    assert chosen(rows([3000] * 3, format="text"))["data.too_long"] == "truncate"


@pytest.mark.parametrize("seed", range(20))
def test_copies_of_a_row_count_once_among_those_held_out(seed: int) -> None:
    rng = random.Random(seed)
    different = [rng.random() for _ in range(rng.choice((30, 100, 300)))]
    places = [place for place in different for _ in range(rng.choice((1, 1, 1, 3)))]
    data = Survey(**{**rows([9] * len(places)).__dict__, "places": places})
    share = first_run.held_out_share(data)
    assert share is not None
    wanted = min(20, len(different) // 4)
    assert data.n_different_below(share) >= max(wanted, len(different) // 10) > 0
    (why,) = [one.why for one in settings(data) if one.key == "data.eval"]
    if data.n_different_below(share) < data.n_below(share):
        assert why.endswith(f"{data.n_different_below(share)} of them different")


def test_a_row_with_many_copies_is_not_most_of_what_is_held_out() -> None:
    places = [0.05] * 60 + [0.1 + n / 100 for n in range(40)]
    data = Survey(**{**rows([9] * 100).__dict__, "places": places})
    assert first_run.held_out_share(data) is None  # it comes before all others
    data = Survey(**{**data.__dict__, "places": [1 - place for place in places]})
    share = first_run.held_out_share(data)
    assert share is not None and 10 <= data.n_below(share) <= 25


def test_equal_rows_cannot_be_parted_and_none_is_held_out() -> None:
    data = Survey(**{**rows([9] * 40).__dict__, "places": [0.4] * 40})
    assert first_run.held_out_share(data) is None
    assert "train.eval_every" not in chosen(data)


def test_text_is_packed_into_long_rows_where_steps_remain() -> None:
    much = chosen(rows([200] * 8000, format="text"), shape="continued-pretraining")
    assert (much["data.packing"], much["data.max_length"]) == (True, 1024)
    assert much["train.batch_size"] == 2
    little = chosen(rows([200] * 60, format="text"), shape="continued-pretraining")
    assert (little["data.packing"], little["data.max_length"]) == (True, 224)
    assert chosen(rows([200, 3000], format="text"))["data.too_long"] == "truncate"


@pytest.mark.parametrize("method", first_run.METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rates_stay_near_the_rule_that_check_goes_by(method: str, shape: str) -> None:
    rate = chosen(rows([50] * 400), method, shape)["train.learning_rate"]
    rule = usual_rate(4096, "llama", method)
    assert 1 / 5 <= rate / rule <= 5


def test_packing_is_left_to_many_rows_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run, "has_gpu", lambda: True)
    assert chosen(rows([50] * 20_000))["data.packing"] is True
    assert chosen(rows([50] * 2_000))["data.packing"] is False
    assert chosen(rows([500] * 2_000))["train.batch_size"] == 16


@pytest.mark.parametrize(("n", "window", "epochs"), [(200, 2, 1), (400, 4, 1), (60, 4, 9)])
def test_rows_of_tools_take_small_steps_before_passes(n: int, window: int, epochs: int) -> None:
    """Most of such a row is read and not trained; 200 other rows take three passes."""
    data = rows([350] * n)
    found = chosen(data, shape="tool-calls")
    assert found["train.batch_size"] * found["train.gradient_accumulation"] == window
    assert found["train.epochs"] == epochs
    held = data.n_below(found["data.eval"])
    assert -(-(n - held) // window) * epochs >= first_run.NEARLY
    said = {one.key: one.why for one in first_run.settings(MODEL, data, "lora", "tool-calls")}
    assert "would memorize" not in said["train.epochs"]
    assert "few steps" not in said["train.learning_rate"]
    assert chosen(rows([350] * 200))["train.epochs"] == 3
