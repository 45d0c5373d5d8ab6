"""The lesson as one page: `render_lesson` puts texts, figures and scripts into the frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loractl import __version__
from loractl.models.shape.sizes import SIZES
from loractl.models.shape.types import ModelShape
from loractl.planning import recommend
from loractl.planning.devices import GPUS, USABLE
from loractl.planning.peak_memory import BITS, CUDA_CONTEXT
from loractl.planning.request import Request, chosen
from loractl.reports.estimate import PARTS
from loractl.reports.explain import model_tables, small_examples
from loractl.reports.explain.claims import claims
from loractl.reports.explain.model_tables import OWN, ROWS
from loractl.reports.explain.texts import texts
from loractl.reports.page.frame import render

HERE = Path(__file__).parent
SCRIPTS = (
    "counting", "drawing", "model_figures", "cost_figures", "example_figures", "shown_numbers",
    "lesson",
)  # fmt: skip
STOPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TASKS = 6  # at the beginning


@dataclass(frozen=True)
class Lesson:
    """What the page is about. `command`: how `loractl estimate` is told of the same model.

    `spectrum`: kind of module -> the singular values of its updates, their effective rank and rank;
    `of_run`: the name of the run or adapter that they come from.
    """

    name: str
    shape: ModelShape
    request: Request
    command: str
    spectrum: Mapping[str, Any] | None = None
    of_run: str = ""


def render_lesson(lesson: Lesson, lang: str) -> str:
    """The HTML of the lesson. Raises UnmatchedError if the request's targets match nothing."""
    t = texts(lang)
    data = page_data(lesson, t["js"])
    request, words = lesson.request, t["js"]
    asked = data["models"][data["chosen"]["model"]]
    values = {
        "t": t,
        "words": words,
        "models": [(key, _label_of(key, one)) for key, one in data["models"].items()],
        "targets": [(key, words["targets"][key]) for key in asked["targets"]],
        "methods": [(key, words["methods"][key]) for key in data["methods"]],
        "stops": len(data["stops"]),
        "frames": len(small_examples.FRAMES),
        "ranks": data["ranks"],
        "rows": _row_choices(t["choose"]),
        "sources": _sources(words["ours"]),
        "claims": list(claims(t["checked"])),
        "memory_text": t["memory"]["one"].format(
            bits=f"{BITS[_packing_of(request)]:.3g}",
            batch=f"{request.batch:,}",
            length=f"{request.length:,}",
        ),
        "how": t["foot"]["how"].format(
            version=__version__, batch=f"{request.batch:,}", length=f"{request.length:,}",
            dtype=request.dtype, optimizer=request.optimizer,
        ),
        "spectrum_note": t["low"]["spectrum_note"].format(where=lesson.of_run)
        if lesson.spectrum
        else "",
    }  # fmt: skip
    return render(
        "explain/lesson.html.jinja",
        values,
        title=t["title"].format(model=lesson.name).unescape(),
        lang=lang,
        styles=[HERE / "lesson.css"],
        scripts=[HERE / f"{name}.js" for name in SCRIPTS],
        data=data,
    )


def page_data(lesson: Lesson, words: Mapping[str, Any]) -> dict[str, Any]:
    """What the scripts read."""
    request = lesson.request
    stops = sorted({*STOPS, request.rank})
    models = model_tables.all_models(lesson.name, lesson.shape, request, stops)
    key = lesson.name if lesson.name in SIZES else OWN
    method = request.method if request.method in ("dora", "adalora") else chosen(request)
    return {
        "models": models,
        "methods": [*model_tables.formulas_of(request), "qlora", "full"],
        "chosen": {
            "model": key,
            "targets": model_tables.targets_of(request),
            "method": method,
            "rank": request.rank,
            "checkpointing": request.checkpointing,
            "tasks": TASKS,
        },
        "stops": stops,
        "alpha": request.alpha,
        "parts": [*PARTS, "context"],
        "gpus": [[gpu.label, gpu.gib] for gpu in GPUS],
        "usable": USABLE,
        "cuda_context": CUDA_CONTEXT,
        "classes": {
            one: recommend.class_of(table["parameters"]) for one, table in models.items()
        },
        "ranks": {
            task: dict(zip((name for _, name in recommend.SIZES), ranks, strict=True))
            for task, ranks in recommend.RANKS.items()
        },
        "approximation": small_examples.approximation(),
        "first_steps": small_examples.first_steps(),
        "spectrum": lesson.spectrum,
        "command": {key: lesson.command},
        "flags": _flags_of(request),
        "words": words,
    }  # fmt: skip


def _flags_of(request: Request) -> str:
    """The settings besides those of the page's controls, as flags of `loractl estimate`."""
    usual, found = Request(), []
    flags = {
        "seq": "length", "batch": "batch", "accumulation": "accumulation", "dtype": "dtype",
        "quantization": "quantization", "optimizer": "optimizer",
    }  # fmt: skip
    for flag, name in flags.items():
        if getattr(request, name) != getattr(usual, name):
            found.append(f" --{flag} {getattr(request, name)}")
    return "".join(found) + ("" if request.packing else " --no-packing")


def _label_of(key: str, table: Mapping[str, Any]) -> str:
    return str(table["name"]) if key == OWN else f"{key} · {table['hub'].rpartition('/')[2]}"


def _packing_of(request: Request) -> str:
    return request.quantization if request.quantization != "none" else "nf4"


def _row_choices(t: Mapping[str, Any]) -> Sequence[tuple[str, Any, str]]:
    limits = {"few": f"{recommend.FEW:,}", "many": f"{recommend.MANY:,}"}
    return [(name, t[name].format(**limits), "") for name in ROWS]


def _sources(ours: str) -> dict[str, str]:
    """Where each recommended value comes from; our own table is named in the page's language."""
    found = model_tables.sources()
    keys = {"rank": "rank", "alpha": "alpha", "targets": "target_modules", "rate": "learning_rate"}
    return {name: found[key].replace(recommend.OURS, ours) for name, key in keys.items()}
