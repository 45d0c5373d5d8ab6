"""The pages in a browser: nothing is amiss on phone or desktop, and hostile texts do nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loractl.reports.run_page.comparison import page_of_runs
from loractl.reports.run_page.content import TRAINING, RunContent
from loractl.reports.run_page.notes import Notes
from loractl.reports.run_page.page import page_of_run
from tests import browser
from tests.browser import Page, Pages
from tests.reports.run_page.made import content, steps
from tests.reports.run_page.payloads import PAYLOADS

pytestmark = pytest.mark.slow
BARE = replace(
    content("bare"), state=TRAINING, metrics=steps(1), notes=Notes(), updates={}, estimate={},
    accounts={}, held_out=None, proofs=[], files=[],
)  # fmt: skip
PAGES = {
    "run": lambda: page_of_run(content()),
    "bare": lambda: page_of_run(BARE),
    "several": lambda: page_of_runs([content("one"), content("another"), BARE]),
    "long words": lambda: page_of_run(content("x" * 300)),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    with browser.started(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_amiss(name: str, width: int, dark: bool, pages: Pages, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES[name](), encoding="utf-8")
    with pages.open(path, width=width, dark=dark) as page:
        assert page.overflow() == []
        assert page.faults(browser.axe()) == []
        assert (page.complaints, page.requests) == ([], [])


def with_every_payload() -> RunContent:
    """A run in which each text is one of the payloads, all of them in the page."""
    runs = [content(payload) for payload in PAYLOADS]
    first = runs[0]
    notes = replace(
        first.notes,
        rows=[row for run in runs for row in run.notes.rows],
        answers=[one for run in runs for one in run.notes.answers],
    )
    return replace(
        first,
        notes=notes,
        proofs=[proof for run in runs for proof in run.proofs],
        files=[file for run in runs for file in run.files],
        updates={name: one for run in runs for name, one in run.updates.items()},
    )


def did_nothing(page: Page) -> None:
    assert (page.complaints, page.requests) == ([], [])
    assert page.evaluate("document.scripts.length") == 0
    assert page.evaluate("document.querySelectorAll('iframe, object, form, img, base').length") == 0


def test_a_hundred_hostile_texts_are_only_text(pages: Pages, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of_run(with_every_payload()), encoding="utf-8")
    with pages.open(path) as page:
        did_nothing(page)
        shown = page.evaluate("document.body.textContent")
        assert sum(f"alert({n})" in shown or f"/{n}" in shown for n in range(100)) > 80
    path.write_text(page_of_runs([content(payload) for payload in PAYLOADS]), encoding="utf-8")
    with pages.open(path) as page:
        did_nothing(page)
