"""Settings by their dotted keys, and those in which a config differs from the defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loractl.config.settings import RunConfig, resolve

REQUIRED = ("model.name_or_path", "data.train")
"""Settings without a default."""


@dataclass(frozen=True)
class Change:
    """A setting that is not its default; `default` is None where there is none."""

    key: str
    value: Any
    default: Any


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted keys; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changes(config: RunConfig) -> list[Change]:
    """The settings of a resolved config that are not their defaults, in the order of the config.

    A default that follows from other settings (alpha from rank) is what it would be beside them;
    `out`, whose default is the name of the config file, is left out.
    """
    given = {"name_or_path": config.model.name_or_path}
    plain = RunConfig.model_validate({"model": given, "data": {"train": config.data.train}})
    defaults = flatten(plain.model_dump())
    defaults |= dict.fromkeys(REQUIRED)
    unset = config.model_copy(
        update={
            "lora": config.lora.model_copy(update={"alpha": None}),
            "train": config.train.model_copy(update={"epochs": None}),
        }
    )
    following = resolve(unset, name="")
    defaults |= {"lora.alpha": following.lora.alpha, "train.epochs": following.train.epochs}
    return [
        Change(key, value, defaults.get(key))
        for key, value in flatten(config.model_dump()).items()
        if key != "out" and (key in REQUIRED or value != defaults.get(key))
    ]
