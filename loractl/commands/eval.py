"""`loractl eval`: a base, adapters and fully trained models, measured on held-out rows."""

import json
from collections.abc import Sequence
from pathlib import Path

from loractl import console
from loractl.commands.arguments import (
    LOADED_DTYPES,
    parse_adapters,
    require_word,
    require_writable_file,
)
from loractl.errors import ConfigError
from loractl.evaluation.eval_request import LOSSES, MATCHES, EvalRequest
from loractl.startup import libraries


def run(
    targets: Sequence[str],
    asked: EvalRequest,
    *,
    model: str | None = None,
    rows: Path | None = None,
    as_json: bool = False,
) -> int:
    """Measure every model on the same rows. `rows` is a file for the results of each row."""
    _check_words(asked)
    if rows is not None:
        require_writable_file("--rows", rows)
    paths = parse_adapters(targets)
    if "base" in paths:
        raise ConfigError("base: this name is reserved for the base model; choose another")

    libraries.import_transformers()
    from loractl.engine.evaluate import evaluate
    from loractl.reports.eval import counts_as_text, figures_as_text

    found = evaluate(paths, asked, model=model)
    if rows is not None:
        lines = [
            json.dumps(row, ensure_ascii=False) for one in found for row in one.rows_as_dicts()
        ]
        rows.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if as_json:
        console.result(json.dumps([one.as_dict() for one in found], indent=2))
    else:
        console.result(figures_as_text([(one.name, one.figures) for one in found]))
        counts = counts_as_text(found[0].n_rows, len(found[0].retain))
        console.note(f"{counts}; brackets show 95% confidence intervals (bootstrap over rows)")
    return 0


def _check_words(asked: EvalRequest) -> None:
    if asked.dtype is not None:
        require_word("--dtype", asked.dtype, LOADED_DTYPES)
    for name in asked.metrics:
        require_word("--metrics", name, (*LOSSES, *MATCHES))
    if ("regex" in asked.metrics) != (asked.regex is not None):
        raise ConfigError("--regex PATTERN and the metric regex must be given together")
    if asked.regex is not None:
        import re

        try:
            re.compile(asked.regex)
        except re.error as error:
            raise ConfigError(
                f"--regex: found {asked.regex!r}, which is not a valid regular expression: {error}"
            ) from None
    for flag, path in (("--data", asked.data), ("--retain", asked.retain)):
        if path is not None and not path.exists():
            raise ConfigError(f"{flag}: {path} does not exist")
