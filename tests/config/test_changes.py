"""Settings by their keys, and what of them is not the default."""

from typing import Any

from loractl.config.changes import changes, flatten
from loractl.config.settings import RunConfig, resolve


def changed(**sections: Any) -> dict[str, Any]:
    plain = {"model": {"name_or_path": "m"}, "data": {"train": "t.jsonl"}}
    for name, values in sections.items():
        old = plain.get(name)
        plain[name] = {**old, **values} if isinstance(old, dict) else values
    config = resolve(RunConfig.model_validate(plain), name="here")
    return {one.key: (one.value, one.default) for one in changes(config)}


REQUIRED = {"model.name_or_path": ("m", None), "data.train": ("t.jsonl", None)}


def test_a_config_of_defaults_has_only_what_has_no_default() -> None:
    assert changed() == REQUIRED


def test_a_change_comes_with_its_default() -> None:
    found = changed(train={"schedule": "linear"}, method="dora", seed=3)
    assert found == REQUIRED | {
        "method": ("dora", "lora"), "train.schedule": ("linear", "cosine"), "seed": (3, 0)
    }  # fmt: skip


def test_a_default_that_follows_from_another_setting_is_no_change() -> None:
    assert changed(lora={"rank": 4}) == REQUIRED | {"lora.rank": (4, 8)}
    assert changed(lora={"rank": 4, "alpha": 8}) == REQUIRED | {"lora.rank": (4, 8)}
    assert changed(lora={"rank": 4, "alpha": 16})["lora.alpha"] == (16, 8)
    assert changed(train={"steps": 5}) == REQUIRED | {"train.steps": (5, None)}


def test_an_empty_mapping_is_a_value() -> None:
    assert flatten({"a": {"b": {}, "c": {"d": 1}}, "e": [2]}) == {"a.b": {}, "a.c.d": 1, "e": [2]}
