"""report.json reads as it was written, and anything else is refused by its first fault."""

import json
from typing import Any

import pytest

from loractl.errors import ArtifactError
from loractl.reports.run_page.notes import Notes
from tests.reports.run_page.made import content


def test_it_reads_as_it_was_written() -> None:
    notes = content().notes
    assert Notes.from_dict(json.loads(json.dumps(notes.as_dict()))) == notes
    assert Notes.from_dict({}) == Notes()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answers": 7}, "answers"),
        ({"answers": [{"where": "x"}]}, "answers.0.prompt"),
        ({"weights": {"q": {"norm": float("nan")}}}, "weights.q.norm"),
        ({"weights": {"q": {"norm": 1.0, "intruders": -1}}}, "weights.q.intruders"),
        ({"rows": [{"where": "x", "tokens": 1, "trained": 1, "spans": ["x"]}]}, "rows.0.spans.0"),
    ],
)
def test_a_damaged_one_names_where(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtifactError, match=f"report.json: {said}"):
        Notes.from_dict(changed)
