"""`loractl eval`: what base, adapters and fully trained models make of held-out rows."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl import console
from loractl.commands.answering import parse_adapters
from loractl.errors import ConfigError, DataError
from loractl.models import libraries

if TYPE_CHECKING:
    from loractl.commands.evaluating import Evaluated
    from loractl.evaluation.bootstrap import Figure

LOSSES = ("loss", "perplexity")
MATCHES = ("exact_match", "contains", "json_match", "regex")


@dataclass(frozen=True)
class Asked:
    """What is measured, on what, and how answers are made."""

    data: Path
    metrics: tuple[str, ...] = ("loss", "perplexity", "exact_match")
    regex: str | None = None
    retain: Path | None = None
    max_length: int = 1024
    max_new_tokens: int = 256
    batch_size: int = 8
    dtype: str = "auto"

    @property
    def matches(self) -> tuple[str, ...]:
        return tuple(name for name in self.metrics if name in MATCHES)


def run(
    targets: Sequence[str],
    asked: Asked,
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
    from loractl.commands.evaluating import evaluate

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


def _check(asked: Asked) -> None:
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
    return console.table(["model", *(name.replace("_", " ") for name in names)], lines)


def _cell(name: str, figure: "Figure | None") -> str:
    if figure is None:
        return "-"
    form: Callable[[float], str] = (
        (lambda x: f"{x:+.4f}") if name == "forgetting" else (lambda x: f"{x:.4g}")
    )
    return f"{form(figure.value)} [{form(figure.low)}, {form(figure.high)}]"


def refuse_text(data: Path, matches: Sequence[str]) -> DataError:
    """What is said when rows without answers are to be compared with answers."""
    return DataError(
        f"{data}: its rows are no conversations that end with an answer, which {matches[0]} needs;"
        " use --metrics loss,perplexity"
    )


def plain(figures: "dict[str, Figure]") -> dict[str, Any]:
    """Figures as JSON has them."""
    return {
        name: {"value": figure.value, "low": figure.low, "high": figure.high}
        for name, figure in figures.items()
    }
