"""`loractl eval`: what base, adapters and fully trained models make of held-out rows."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loractl import console, text
from loractl.commands.arguments import AUTO, parse_adapters, require_dtype
from loractl.dtypes import WIDTHS
from loractl.errors import ConfigError
from loractl.evaluation.eval_request import LOSSES, MATCHES, EvalRequest
from loractl.startup import libraries

if TYPE_CHECKING:
    from loractl.engine.evaluate import Evaluated
    from loractl.evaluation.bootstrap import Figure


def run(
    targets: Sequence[str],
    asked: EvalRequest,
    *,
    model: str | None = None,
    rows: Path | None = None,
    as_json: bool = False,
) -> int:
    """Measure every model on the same rows. `rows` is a file for the figures of each row."""
    _check(asked)
    paths = parse_adapters(targets)
    if "base" in paths:
        raise ConfigError("base: a name that the base model has already; choose another")

    libraries.import_transformers()
    from loractl.engine.evaluate import evaluate

    found = evaluate(paths, asked, model=model)
    if rows is not None:
        lines = [json.dumps(row, ensure_ascii=False) for one in found for row in one.rows()]
        rows.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if as_json:
        console.result(json.dumps([one.as_dict() for one in found], indent=2))
    else:
        console.result(_table(found))
        console.note(f"{_counts(found)}; in brackets the 95 % interval by the bootstrap over rows")
    return 0


def _check(asked: EvalRequest) -> None:
    require_dtype(asked.dtype, (AUTO, *WIDTHS))
    known = (*LOSSES, *MATCHES)
    for name in asked.metrics:
        if name not in known:
            raise ConfigError(f"--metrics: {name!r}, expected some of {', '.join(known)}")
    if ("regex" in asked.metrics) != (asked.regex is not None):
        raise ConfigError("--regex PATTERN and the metric regex belong together")
    if asked.regex is not None:
        import re

        try:
            re.compile(asked.regex)
        except re.error as error:
            raise ConfigError(
                f"--regex: {asked.regex!r} is no regular expression: {error}"
            ) from None
    for flag, path in (("--data", asked.data), ("--retain", asked.retain)):
        if path is not None and not path.exists():
            raise ConfigError(f"{flag}: {path} does not exist")


def _counts(found: "Sequence[Evaluated]") -> str:
    first = found[0]
    text = f"{len(first.where)} rows"
    return text + (f", {len(first.retain)} of general text" if first.retain else "")


def _table(found: "Sequence[Evaluated]") -> str:
    names = list(found[0].figures)
    lines = [[one.name, *(_cell(name, one.figures.get(name)) for name in names)] for one in found]
    return text.table(["model", *(name.replace("_", " ") for name in names)], lines)


def _cell(name: str, figure: "Figure | None") -> str:
    if figure is None:
        return "-"
    form: Callable[[float], str] = (
        (lambda x: f"{x:+.4f}") if name == "forgetting" else (lambda x: f"{x:.4g}")
    )
    return f"{form(figure.value)} [{form(figure.low)}, {form(figure.high)}]"
