"""Settings that the contract names and this version does not implement."""

from collections.abc import Iterator
from typing import Any

from loractl.config.settings import RunConfig, Section

ABSENT = "not available in this version"

ANY = None
"""In NOT_YET: every value except the default."""

NOT_YET: dict[str, tuple[Any, ...] | None] = {
    "train.report_to": ANY,
}
"""Settings that are defined but not implemented in this version; `loader` refuses them."""


def not_yet(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for every setting that this version does not implement."""
    for key, refused in NOT_YET.items():
        value: Any = config
        default: Any = None
        for name in key.split("."):
            default = type(value).model_fields[name].get_default()
            value = getattr(value, name)
        if value in refused if refused is not None else value != default:
            what = "other than its default" if isinstance(value, Section) else repr(value)
            yield key, f"found {what}, which is {ABSENT}; remove it"
