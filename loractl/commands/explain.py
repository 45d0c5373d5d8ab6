"""`loractl explain`: the lesson about LoRA on one model, as a page that opens without a network.

Only the model's shape is read. Torch is imported for one thing: the spectrum of an adapter, where
the model is given as a run, as the config of one, or as an adapter.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loractl import console
from loractl.commands.arguments import require_word, require_writable_file
from loractl.commands.estimate import read_request
from loractl.errors import ConfigError, ModelError
from loractl.lora.ranks import UnmatchedError
from loractl.models.shape.sizes import SIZES
from loractl.planning.known_model import shape_of
from loractl.planning.request import Request

DEFAULT = "8B"
CONFIGS = (".yaml", ".yml")
MOST_CURVES, MOST_VALUES = 40, 64  # of a kind of module, and of one curve: what a page can show


@dataclass(frozen=True)
class Asked:
    """The model of the page, the settings it begins with, and where its adapter is, if it has one.

    `command`: how `loractl estimate` is told of the same.
    """

    model: str
    request: Request
    command: str
    adapter: Path | None = None


def run(model: str | None, rank: int | None, lang: str, out: Path) -> int:
    """Write the page and print its path. Raises ConfigError, ModelError or ArtifactError."""
    from loractl.reports.explain.texts import LANGUAGES

    require_word("--lang", lang, LANGUAGES)
    if out.suffix.lower() != ".html":
        raise ConfigError(f"--out: found {out}, expected a name that ends in .html")
    require_writable_file("--out", out)
    asked = _read(model or DEFAULT, rank)
    shape = shape_of(asked.model)
    is_size = asked.model.upper() in SIZES
    spectrum = None if asked.adapter is None else _read_spectrum(asked.adapter)

    from loractl.reports.explain.lesson import Lesson, render_lesson
    from loractl.reports.page.frame import save

    lesson = Lesson(
        asked.model.upper() if is_size else Path(asked.model).name or asked.model,
        shape, asked.request, asked.command, spectrum, _name_of(asked.adapter),
    )  # fmt: skip
    try:
        page = render_lesson(lesson, lang)
    except UnmatchedError as error:
        raise ConfigError(f"{error.key}: {error}") from None
    save(out, page)
    console.result(str(out))
    return 0


def _read(model: str, rank: int | None) -> Asked:
    """What --model stands for: a config, a run, an adapter, or a model by size, directory or id."""
    path, flags = Path(model).expanduser(), {"rank": rank}
    if path.suffix in CONFIGS:
        return _of_config(path, flags)
    if (path / "config.yaml").is_file():
        return _of_config(path / "config.yaml", flags)
    if (path / "adapter_config.json").is_file():
        return _of_adapter(path, rank)
    name, request = read_request(None, [], model, flags)
    return Asked(name, request, f"--model {shlex.quote(model)}")


def _of_config(path: Path, flags: Mapping[str, Any]) -> Asked:
    from loractl.config import loader

    name, request = read_request(path, [], None, flags)
    out = loader.load(path, [], paths_exist=False).config.out
    runs = [path.parent, *([Path(out)] if out else [])]
    found = (run / "adapter" for run in runs if (run / "adapter" / "adapter_config.json").is_file())
    return Asked(name, request, shlex.quote(str(path)), next(found, None))


def _of_adapter(path: Path, rank: int | None) -> Asked:
    from loractl.artifacts.peft import adapter as adapters

    adapter = adapters.read(path)
    if adapter.base is None:
        raise ModelError(f"{path}: names no base model; give --model the base itself")
    spec = adapter.spec
    request = Request(
        rank=rank or spec.rank,
        alpha=spec.alpha,
        target_modules=spec.target_modules,
        layers=spec.layers,
        rank_pattern=spec.rank_pattern,
        method=adapter.formula,
        modules_to_save=adapter.whole,
    )
    return Asked(adapter.base, request, f"--model {shlex.quote(adapter.base)}", path)


def _name_of(adapter: Path | None) -> str:
    """What an adapter is called on the page: its directory, or that of its run."""
    if adapter is None:
        return ""
    path = adapter.resolve()
    return path.parent.name if path.name == "adapter" else path.name


def _read_spectrum(path: Path) -> dict[str, Any]:
    """Kind of module -> the singular values of its updates, evenly chosen where they are many."""
    from loractl.artifacts.peft import adapter as adapters
    from loractl.engine.inspect import examine_adapter
    from loractl.reports.inspect_plot import kind_of

    report = examine_adapter(adapters.read(path), None)
    curves: dict[str, list[list[float]]] = {}
    for name, one in report["modules"].items():
        values = [float(f"{value:.4g}") for value in one["singular_values"][:MOST_VALUES]]
        curves.setdefault(kind_of(name), []).append(values)
    return {
        kind: {
            "values": found[:: -(-len(found) // MOST_CURVES)],
            "effective": report["kinds"][kind]["mean_effective_rank"],
            "rank": report["kinds"][kind]["rank"],
        }
        for kind, found in curves.items()
    }
