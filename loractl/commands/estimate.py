"""`loractl estimate`: parameters, memory, disk and time of a run, without loading anything."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loractl import console
from loractl.commands.arguments import count_of, require_word, require_writable_file
from loractl.config.optimizers import OPTIMIZERS
from loractl.dtypes import WIDTHS
from loractl.errors import ConfigError
from loractl.lora.ranks import UnmatchedError
from loractl.planning.estimate import Pace, report
from loractl.planning.frameworks import FRAMEWORKS
from loractl.planning.known_model import automatic_dtype, shape_of
from loractl.planning.request import Request, of_settings


@dataclass(frozen=True)
class EstimateRequest:
    """What is estimated besides the run itself."""

    tasks: int = 1
    tokens: str | None = None
    tokens_per_s: str | None = None
    price: float | None = None
    plot: Path | None = None


def run(
    config: Path | None,
    overrides: list[str],
    model: str | None,
    flags: Mapping[str, Any],
    asked: EstimateRequest,
    *,
    as_json: bool,
) -> int:
    """Print the estimate for a config, or for a model with settings from flags.

    Raises ConfigError or ModelError.
    """
    name, request = read_request(config, overrides, model, flags)
    if asked.plot is not None:
        from loractl.reports.figure import require_plot

        require_plot(asked.plot)
        require_writable_file("--plot", asked.plot)
    shape = shape_of(name)
    try:
        found = report(name, shape, request, tasks=asked.tasks, pace=_read_pace(asked))
    except UnmatchedError as error:
        where = "--targets" if error.key == "lora.target_modules" and config is None else error.key
        raise ConfigError(f"{where}: {error}") from None
    if asked.plot is not None:
        from loractl.reports.estimate_plot import draw_estimate

        draw_estimate(asked.plot, found)
        found["plot"] = str(asked.plot)
    console.result(json.dumps(found, indent=2) if as_json else _as_text(found))
    return 0


def read_request(
    config: Path | None, overrides: list[str], model: str | None, flags: Mapping[str, Any]
) -> tuple[str, Request]:
    """The model's name and the settings; flags override those of a config."""
    given = {key: value for key, value in flags.items() if value is not None}
    _require_words(given)
    if (config is None) == (model is None):
        raise ConfigError("estimate: expected either a CONFIG or --model")
    if config is None:
        from loractl.engine.base import model_path

        if overrides:
            raise ConfigError("--set: overrides settings of a CONFIG, but none is given")
        assert model is not None
        return model_path(model), replace(Request(), **given)
    from loractl.config import loader

    # Neither data nor output need exist: planning may come before them.
    loaded = loader.load(config, overrides, paths_exist=False).config
    request = of_settings(
        loaded.model,
        loaded.method,
        loaded.lora,
        loaded.data,
        loaded.train,
        dtype=automatic_dtype(),
    )
    return loaded.model.name_or_path, replace(request, **given)


def _require_words(given: dict[str, Any]) -> None:
    """Refuse a word that an option does not accept; parse a list of targets."""
    known: dict[str, tuple[str, tuple[str, ...]]] = {
        "dtype": ("--dtype", tuple(WIDTHS)),
        "framework": ("--framework", tuple(FRAMEWORKS)),
        "method": ("--method", ("lora", "dora", "adalora", "full")),
        "optimizer": ("--optimizer", tuple(OPTIMIZERS)),
        "quantization": ("--quantization", ("none", "nf4", "nf4-double", "int8")),
    }
    for key, (option, words) in known.items():
        if key in given:
            require_word(option, given[key], words)
    targets = given.get("target_modules")
    if targets is not None and targets not in ("minimal", "attention", "all-linear"):
        given["target_modules"] = [name.strip() for name in targets.split(",") if name.strip()]
        if not given["target_modules"]:
            raise ConfigError("--targets: found no name, expected minimal, attention, all-linear or"
                              " module names separated by commas")  # fmt: skip


def _read_pace(asked: EstimateRequest) -> Pace | None:
    if asked.tokens_per_s is None:
        if asked.price is not None or asked.tokens is not None:
            raise ConfigError(
                "--price and --tokens need --tokens-per-s: a number or a run directory"
            )
        return None
    if asked.tokens is None:
        raise ConfigError("--tokens-per-s: needs --tokens, the total number of training tokens")
    return Pace(
        _tokens_per_second(asked.tokens_per_s), count_of(asked.tokens, "--tokens"), asked.price
    )


def _tokens_per_second(text: str) -> float:
    """Tokens per second: a number, or the median in a run's metrics.jsonl."""
    path = Path(text)
    if path.is_dir():
        try:
            lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            steps = [row["tokens_per_s"] for row in map(json.loads, lines) if "tokens_per_s" in row]
        except (OSError, ValueError, TypeError):
            steps = []
        if not steps:
            raise ConfigError(f"--tokens-per-s: {path} has no metrics.jsonl with training steps")
        return float(statistics.median(steps))
    try:
        speed = float(text)
    except ValueError:
        raise ConfigError(
            f"--tokens-per-s: found {text!r}, expected a number or a run directory"
        ) from None
    if not 0 < speed < float("inf"):
        raise ConfigError(f"--tokens-per-s: found {text}, expected a number above 0")
    return speed


def _as_text(found: Mapping[str, Any]) -> str:
    from loractl.reports.estimate import report_lines

    return "\n".join(report_lines(found))
