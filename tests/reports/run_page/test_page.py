"""The page of a run: every section, in any state of the run, and hostile texts as text."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from loractl.reports.run_page.comparison import page_of_runs
from loractl.reports.run_page.content import STOPPED, TRAINING
from loractl.reports.run_page.notes import Notes, Weight
from loractl.reports.run_page.page import SECTIONS, page_of_run, why_no_answers
from tests.reports.run_page.made import content, steps
from tests.reports.run_page.payloads import PAYLOADS


class Structure(HTMLParser):
    """The tags and attributes of a page, in order, without its texts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, ...]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert not [name for name in names if name.startswith("on") or name == "style"], (
            tag,
            names,
        )
        self.found.append((tag, *names))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_hostile_text_changes_no_tag_of_the_page(payload: str) -> None:
    assert Structure(page_of_run(content(payload))).found == PLAIN
    runs = [content(payload), replace(content(payload), settings={"a": payload})]
    assert Structure(page_of_runs(runs)).found == PLAIN_OF_TWO


def test_a_hostile_text_is_there_as_it_is() -> None:
    page = page_of_run(content("<script>alert('1')</script> & \"x\""))
    assert "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &#34;x&#34;" in page
    assert "<script>alert" not in page


PLAIN = Structure(page_of_run(content("plain"))).found
PLAIN_OF_TWO = Structure(
    page_of_runs([content("plain"), replace(content("plain"), settings={"a": "plain"})])
).found


def test_a_page_is_one_small_file_that_refers_to_nothing() -> None:
    page = page_of_run(content())
    assert len(page.encode()) < 300_000
    assert not re.search(r"https?://|src=|url\(|@import", page)
    assert re.findall(r'href="([^"]*)"', page) == [
        "data:,", "#main", *(f"#{section}" for section in SECTIONS)
    ]  # fmt: skip


def test_a_run_of_thirty_thousand_steps_has_a_small_page_too() -> None:
    updates = {
        f"model.layers.{layer}.{kind}": {
            **next(iter(content().updates.values())), "singular_values": [1.0] * 256, "rank": 256
        }
        for layer in range(100)
        for kind in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }  # fmt: skip
    page = page_of_run(replace(content(), metrics=steps(30_000), updates=updates))
    assert len(page.encode()) < 1_000_000


@pytest.mark.parametrize("state", [TRAINING, STOPPED])
def test_a_run_that_has_nothing_yet_has_a_page(state: str) -> None:
    bare = replace(
        content(), state=state, metrics=[], accounts={}, about={}, notes=Notes(), updates={},
        estimate={}, held_out=None, proofs=[], files=[], absent={},
    )  # fmt: skip
    page = page_of_run(bare)
    assert "No step has been taken yet." in page and "Nothing has been saved yet." in page
    assert "No proof has been recorded yet." in page


def test_a_run_in_training_says_how_far_it_is() -> None:
    live = replace(content(), state=TRAINING)
    live = replace(live, settings={**live.settings, "train.steps": 60})
    page = page_of_run(live)
    assert "50% done, about 1m00s left" in page and "<progress" in page
    assert "<progress" not in page_of_run(replace(live, state=STOPPED))


def test_why_there_are_no_answers_is_said() -> None:
    run = replace(content(), notes=Notes())
    assert "no report.json" in why_no_answers(run) and why_no_answers(run) in page_of_run(run)
    assert "when the training ends" in why_no_answers(replace(run, state=TRAINING))
    unasked = replace(run, settings={**run.settings, "data.eval": None})
    assert "data.eval is not set" in why_no_answers(unasked)
    asked = replace(run, notes=Notes(environment={"device": "cpu"}))
    assert why_no_answers(asked) == "No held-out row ends with an answer."


def test_of_a_model_trained_whole_the_changes_of_its_weights_are_mapped() -> None:
    weights = {f"model.layers.{n}.mlp.up_proj": Weight(4.0, update=1.0 + n) for n in range(3)}
    settings = {**content().settings, "method": "full"}
    page = page_of_run(
        replace(content(), settings=settings, updates={}, notes=Notes(weights=weights))
    )
    assert "layer 2, up_proj: ‖ΔW‖ / ‖W‖ = 0.75" in page and "stays as it is" not in page
    assert "Every weight is trained." in page_of_run(
        replace(content(), settings=settings, updates={}, notes=Notes())
    )
