"""The page of a run: its content in sections, each laid out by a template of its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loractl import __version__, text
from loractl.reports.page.frame import render
from loractl.reports.run_page import (
    costs,
    curves,
    data_shown,
    headline,
    heat_map,
    matrices,
    provenance,
    spectra,
)
from loractl.reports.run_page.content import FINISHED, RunContent

STYLE = Path(__file__).with_name("run_page.css")
SECTIONS = {
    "answers": "Before and after",
    "curves": "How it learned",
    "trained": "What was trained",
    "costs": "Beside full fine-tuning",
    "data": "Data and masks",
    "settings": "Settings",
    "proofs": "Proofs and origin",
}


def page_of_run(run: RunContent) -> str:
    """The page of one run as HTML. Whatever text the run's files bring is escaped."""
    title = f"{run.name} · loractl report"
    return encodable(
        render("run_page/report.html.jinja", _values(run), title=title, styles=[STYLE])
    )


def encodable(page: str) -> str:
    """The page with question marks for halves of pairs, which JSON may hold and UTF-8 cannot."""
    return page.encode("utf-8", "replace").decode("utf-8")


def _values(run: RunContent) -> dict[str, Any]:
    share, left = headline.share_done(run), headline.seconds_left(run)
    updates = matrices.in_reading_order(run.updates)
    kinds = spectra.kinds_of_modules(updates, run.notes.weights)
    return {
        "run": run,
        "version": __version__,
        "sections": list(SECTIONS.items()),
        "lede": headline.lede(run),
        "progress": share if run.is_live else None,
        "seconds_left": text.duration(left) if left else None,
        "facts": headline.facts(run),
        "answers": run.notes.answers,
        "why_no_answers": why_no_answers(run),
        "charts": curves.charts_of_run(run.metrics),
        "matrices": matrices.drawn_to_scale(updates),
        "scale": matrices.common_scale(run.updates),
        "heat": heat_map.heat_map(updates or whole_updates(run), run.notes.weights),
        "intruders": spectra.intruders_in_words(run.notes.weights),
        "kinds": kinds,
        **spectra.table_of_kinds(kinds),
        "costs": costs.costs(run),
        "sources": data_shown.sources(run),
        "rows": run.notes.rows,
        "changed": provenance.changed_settings(run),
        "environment": provenance.environment(run),
        "hashes": provenance.hashes(run),
    }


def why_no_answers(run: RunContent) -> str:
    """Why a page has no answers to show."""
    if run.settings.get("data.eval") is None:
        return (
            "The run held out no rows (data.eval is not set), so there is nothing to ask that"
            " training has not seen."
        )
    if run.state != FINISHED:
        return "The answers to held-out rows are written when the training ends."
    if not run.notes.environment:
        return (
            "The run has no report.json, which training writes at its end (train.report), so its"
            " answers are not known. loractl chat RUN asks it now."
        )
    return "No held-out row ends with an answer."


def whole_updates(run: RunContent) -> dict[str, Mapping[str, Any]]:
    """Of a model whose every weight was trained: the norm of each matrix's change."""
    found = run.notes.weights.items()
    changed = {name: {"norm": W.update} for name, W in found if W.update is not None}
    return matrices.in_reading_order(changed)
