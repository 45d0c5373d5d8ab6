"""No kind of conversation loses anything unnoticed in any template: see template_grid."""

import importlib.metadata
import importlib.util

import pytest

from tests.data import template_grid as grid

if importlib.util.find_spec("trl") is None:
    pytest.skip("TRL is not installed: its templates are tried here", allow_module_level=True)


@pytest.mark.parametrize("name", grid.templates())
def test_every_kind_of_conversation_is_rendered_as_transformers_does_or_refused(name: str) -> None:
    tokenizer = grid.tokenizer_of(grid.templates()[name])
    for kind, row in grid.KINDS.items():
        found = grid.cell(tokenizer, row)
        assert found.outcome in grid.OUTCOMES, kind
        assert bool(found.why) == (found.outcome in "x-"), kind


@pytest.mark.slow
def test_the_table_of_outcomes_is_the_one_in_the_documents() -> None:
    text = grid.table(grid.outcomes())
    print(text)
    known = grid.TABLE.read_text("utf-8")
    if f"(those of TRL {importlib.metadata.version('trl')}," not in known:
        pytest.skip("the table is of another version of TRL")
    assert text == known, "run python -m tests.data.template_grid"
