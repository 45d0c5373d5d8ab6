"""`loractl adapters extract`: the adapter closest to the difference between two models.

The share of the change it keeps, layer by layer, is a test of the low-rank hypothesis.
"""

import json
from pathlib import Path

from loractl import console
from loractl.commands.arguments import require_apart, require_free_or_adapter, require_size
from loractl.engine.requests import ExtractRequest
from loractl.errors import ArtifactError
from loractl.reports.extract import as_text, notes, report_of


def run(
    base: str, tuned: str, out: Path, *, asked: ExtractRequest, overwrite: bool, as_json: bool
) -> int:
    """Extract an adapter. Raises ArtifactError if no difference can be expressed by one."""
    require_size(asked.rank, asked.energy)
    require_free_or_adapter(out, overwrite=overwrite)

    from loractl.artifacts import files
    from loractl.artifacts.model.pair import open_pair
    from loractl.engine.base import find_model
    from loractl.engine.extract import find_changes, nothing_found, write_adapter

    sources = [find_model(name) for name in (base, tuned)]
    require_apart(out, *(one.directory for one in sources))
    pair = open_pair(*sources)
    found = find_changes(pair, asked)
    if not found.updates:
        raise ArtifactError(nothing_found(tuned, base, found))
    report = report_of(out, asked.size, found)
    files.publish(out, lambda directory: write_adapter(directory, pair, asked, found))
    for line in notes(found, pair.head):
        console.note(line)
    console.result(json.dumps(report, indent=2) if as_json else as_text(report))
    return 0
