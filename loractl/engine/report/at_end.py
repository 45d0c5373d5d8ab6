"""The report of a run when its training ends: what only the loaded model can tell goes into
report.json, and the page is made from the run's files.

The run is published by then. Whatever goes wrong here is a note.
"""

import os
import platform
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from loractl import console, text
from loractl.artifacts import files
from loractl.artifacts.run import metrics
from loractl.artifacts.run.directory import RunDir
from loractl.engine.report import beside_base
from loractl.engine.report.before_after import answers, base_of_, first_questions, side_by_side
from loractl.engine.report.gather import gather
from loractl.engine.session import Session
from loractl.engine.summary import describe_kernels
from loractl.errors import Stopped
from loractl.models.torch_dtypes import dtype_word
from loractl.reports.check import preview
from loractl.reports.run_page.notes import Notes, ShownRow, Span
from loractl.reports.run_page.numbers import training_seconds
from loractl.reports.run_page.page import page_of_run
from loractl.signals import StopRequest

SHOWN_ROWS = 3
LONGEST = 1200  # characters of a text that are kept; the middle is left out


def write_report_(session: Session, directory: RunDir, stop: StopRequest) -> None:
    """Write report.json and report.html; the model is used up by it."""
    if not session.world.is_first:
        return
    again = f"make it with: loractl report {directory.path}"
    try:
        with stop.at_once():
            notes = _notes_of_(session, directory)
            files.replace_text(directory.notes, files.as_json(notes.as_dict()))
            page = page_of_run(gather(directory))
            files.replace_text(directory.report, page)
    except Stopped:
        console.note(f"note: the run is complete; its report is not written; {again}")
    except Exception as error:  # of whatever kind: the run is complete, and stays so
        what = text.printable(f"{type(error).__name__}: {error}")
        console.note(f"note: the report could not be written: {what}; {again}")
    else:
        console.note(f"report   {directory.report}")


def _notes_of_(session: Session, directory: RunDir) -> Notes:
    """What report.json holds. Takes the adapters off the model."""
    model, questions = session.model, first_questions(session)
    with torch.no_grad():
        tuned = answers(session, model, questions)
        if session.layers:
            seconds = training_seconds(metrics.read(directory.metrics))
            weights = beside_base.weights_of_adapters(session.layers, seconds)
            base = base_of_(session)
        else:
            base = base_of_(session)
            weights = beside_base.weights_of_whole(model, base)
        plain = answers(session, base, questions)
    return Notes(
        environment=_environment(session),
        rows=list(_rows(session)),
        answers=side_by_side(questions, plain, tuned),
        weights=weights,
    )


def _rows(session: Session) -> Iterator[ShownRow]:
    """The first training rows as they are trained."""
    for example in islice(session.data.train, SHOWN_ROWS):
        path = example.path or session.data.of_train()[0].path
        spans = [
            Span(is_trained, text.without_middle(words, LONGEST))
            for is_trained, words in preview(session.tokenizer, example)
        ]
        yield ShownRow(f"{path}:{example.line}", len(example.ids), example.n_trained, spans)


def _environment(session: Session) -> dict[str, str | int]:
    device = session.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "system": platform.platform(terse=True),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "dtype": dtype_word(session.dtype),
        "layers": describe_kernels(session),
    }


def processor_name() -> str:
    """The model of the CPU, where the system tells it; else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
