"""Settings that are right one by one but not together are named, and those that go together not."""

from typing import Any

import pytest

from loractl.config.conflicts import adalora_steps, conflicts
from loractl.config.settings import AdaloraSection
from tests.config.test_settings import config


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"train__steps": 4, "train__epochs": 1}, "train.steps"),
        ({"train__steps": 4, "train__warmup": 5}, "train.warmup"),
        ({"train__eval_every": 4}, "train.eval_every"),
        ({"train__lora_plus_ratio": 16, "method": "full"}, "train.lora_plus_ratio"),
        ({"train__early_stopping": 2, "data__eval": 0.1}, "train.early_stopping"),
        ({"lora__rank_pattern": {"": 4}}, "lora.rank_pattern"),
        ({"lora__alpha_pattern": {"": 4}}, "lora.alpha_pattern"),
        ({"lora__modules_to_save": ["norm"], "method": "full"}, "lora.modules_to_save"),
        ({"lora__adalora": {"every": 5}}, "lora.adalora"),
        ({"method": "adalora", "lora__rank": 4}, "lora.rank"),
        ({"method": "adalora", "lora__rank_pattern": {"q": 4}}, "lora.rank_pattern"),
        ({"method": "adalora", "lora__alpha_pattern": {"q": 4}}, "lora.alpha_pattern"),
        ({"method": "adalora", "lora__init": "pissa"}, "lora.init"),
        ({"method": "adalora", "lora__rank_schedule": {4: 2}}, "lora.rank_schedule"),
        (
            {"method": "adalora", "lora__adalora": {"initial_rank": 4, "target_rank": 5}},
            "lora.adalora.target_rank",
        ),
        ({"method": "adalora", "train__steps": 1200}, "lora.adalora"),
        ({"method": "full", "lora__rank_schedule": {4: 2}}, "lora.rank_schedule"),
        ({"lora__init": "olora", "lora__rank_schedule": {4: 2}}, "lora.rank_schedule"),
        (
            {"lora__rank_pattern": {"q": 4}, "lora__rank_schedule": {4: 2}},
            "lora.rank_schedule",
        ),
        ({"train__steps": 3, "lora__rank_schedule": {4: 2}}, "lora.rank_schedule"),
        ({"train__optimizer": "adamw-8bit", "lora__rank_schedule": {4: 2}}, "lora.rank_schedule"),
        ({"train__optimizer": "adafactor", "lora__rank_schedule": {4: 2}}, "lora.rank_schedule"),
    ],
)
def test_what_combines_badly_is_named(settings: dict[str, Any], key: str) -> None:
    assert [name for name, _ in conflicts(config(**settings))] == [key]


def test_ranks_change_with_an_optimizer_whose_state_follows() -> None:
    for name in ("sgd", "lion"):
        settings: dict[str, Any] = {"train__optimizer": name, "lora__rank_schedule": {4: 2}}
        assert not list(conflicts(config(**settings)))


def test_warmup_may_take_all_the_steps_or_a_share_of_them() -> None:
    assert not list(conflicts(config(train__steps=4, train__warmup=4)))
    assert not list(conflicts(config(train__steps=1, train__warmup=0.5)))


def test_phases_that_leave_steps_for_ranks_to_fall_are_right() -> None:
    assert not list(conflicts(config(method="adalora", train__steps=1201)))
    assert not list(conflicts(config(train__steps=4, lora__rank_schedule={4: 2})))


def test_a_run_too_short_for_its_phases_is_told_by_how_much() -> None:
    message = adalora_steps(AdaloraSection(), 100)
    assert message is not None and "is 1200" in message
    assert "none of the run's 100 steps" in message
    assert adalora_steps(AdaloraSection(warmup_steps=2, final_steps=3), 6) is None
