"""Which converted values our own rules refuse. What is done about them is left to `tools`."""

from collections.abc import Mapping
from typing import Any

from loractl.config.validation import check


def complaint(settings: Mapping[str, Any]) -> str | None:
    """What is wrong with the first of these settings (dotted key -> value) that is not valid."""
    if settings.get("train.learning_rate") == 0:  # no error in a config, where it is on purpose
        return "found 0, expected a number greater than 0: nothing would be learned"
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *above, name = key.split(".")
        section = tree
        for part in above:
            section = section.setdefault(part, {})
        section[name] = value
    for place, message in check(tree).problems:  # also of keys that are required, and not here
        if any(place == key or place.startswith((f"{key}.", f"{key}[")) for key in settings):
            return message
    return None
