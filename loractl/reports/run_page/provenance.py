"""Where a run comes from: its settings, what was proven of it, its files, and the machine."""

import json
from collections.abc import Iterator
from typing import Any

from loractl import text
from loractl.reports.run_page.content import RunContent
from loractl.text import printable

LONGEST = 300  # characters of a setting's value


def changed_settings(run: RunContent) -> list[tuple[str, str, str]]:
    """(key, value, default) of the settings that are not their defaults."""
    return [
        (one.key, setting(one.value), "required" if one.default is None and one.key in REQUIRED
         else setting(one.default))
        for one in run.changed
    ]  # fmt: skip


REQUIRED = ("model.name_or_path", "data.train")


def setting(value: Any) -> str:
    """A value as YAML would write it, on one line and not too long."""
    written = (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    )
    return text.without_middle(printable(written), LONGEST)


def environment(run: RunContent) -> list[tuple[str, str]]:
    """What it ran on, and with which versions."""
    return list(_environment(run))


def _environment(run: RunContent) -> Iterator[tuple[str, str]]:
    versions = run.about.get("versions")
    if run.about.get("loractl"):
        yield "loractl", printable(str(run.about["loractl"]))
    if isinstance(versions, dict):
        yield from ((str(name), printable(str(version))) for name, version in versions.items())
    for name, value in run.notes.environment.items():
        if name == "memory_bytes" and isinstance(value, int):
            yield "memory", text.size(value)
        else:
            yield printable(str(name)), printable(str(value))


def hashes(run: RunContent) -> list[tuple[str, str]]:
    """What identifies the base, the data and what was written: (what, SHA-256)."""
    return list(_hashes(run))


def _hashes(run: RunContent) -> Iterator[tuple[str, str]]:
    base = run.about.get("base")
    if isinstance(base, dict) and base.get("fingerprint"):
        yield (
            f"base {printable(str(base.get('name_or_path')))}",
            printable(str(base["fingerprint"])),
        )
    for name, account in run.accounts.items():
        if isinstance(account, dict) and account.get("sha256"):
            yield f"data {printable(name)}", printable(str(account["sha256"]))
    for one in run.files:
        yield f"{one.name}, {text.size(one.size)}", one.sha256 or "not hashed: large"
