"""What is recorded about an adapter made from others, and the check that it does something."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loractl import __version__
from loractl.artifacts.peft.adapter import WEIGHTS, Adapter
from loractl.digests import file_sha256
from loractl.errors import ArtifactError


def require_effect(where: Path, norms: Sequence[float]) -> None:
    """An adapter that changes nothing is never a success."""
    if not any(norm > 0 for norm in norms):
        raise ArtifactError(f"{where}: the adapter changes nothing: its update is zero everywhere")


def about_made(
    command: str, sources: Mapping[str, Adapter], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """loractl.json of an adapter made from others: their hashes, the settings, the base."""
    first = next(iter(sources.values()))
    base = first.about.get("base")
    return {
        "loractl": __version__,
        "base": {**(base if isinstance(base, dict) else {}), "name_or_path": first.base},
        **_about_all(list(sources.values())),
        "made": {
            "by": f"adapters {command}",
            "from": {
                name: {
                    "path": str(source.directory.absolute()),
                    "sha256": file_sha256(source.directory / WEIGHTS),
                }
                for name, source in sources.items()
            },
            **settings,
        },
    }


def _about_all(sources: Sequence[Adapter]) -> dict[str, Any]:
    """What is known of every source: the dtype they were trained in, how answers end,
    whether a config chose the chat template, and what was taken of rows."""
    found: dict[str, Any] = {}
    dtypes = {source.dtype for source in sources}
    if len(dtypes) == 1 and None not in dtypes:
        found["dtype"] = dtypes.pop()
    ends = [source.ends for source in sources]
    if None not in ends:
        found["ends"] = sorted({end for some in ends for end in some or ()})
    for key in ("chat_template", "rows"):
        about = [source.about.get(key) for source in sources]
        if about[0] is not None and all(one == about[0] for one in about):
            found[key] = about[0]
    return found
