"""What the run cost beside full fine-tuning: parameters, memory and storage, as planning computes
them from the shape of the base."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from loractl import text
from loractl.reports.page import svg
from loractl.reports.run_page.content import RunContent
from loractl.reports.run_page.headline import METHODS
from loractl.reports.run_page.numbers import last

BAR_WIDTH = 320


@dataclass(frozen=True)
class Card:
    """One comparison: of what, the run's figure, and that of full fine-tuning."""

    name: str
    value: str
    beside: str
    remark: str = ""


@dataclass(frozen=True)
class Costs:
    linear: Markup
    logarithmic: Markup
    is_unseen: str  # of the shorter bar on the linear scale, if it is
    cards: list[Card]


def costs(run: RunContent) -> Costs | None:
    """The bars and the three cards; None where planning knows no shape."""
    if not run.estimate:
        return None
    methods = run.estimate["methods"]
    own = methods[run.estimate["chosen"]]
    is_full = run.estimate["chosen"] == "full"
    lora = f"LoRA of rank {run.settings.get('lora.rank')}"
    name = METHODS.get(run.method, run.method)
    other = methods["lora"] if is_full else methods["full"]
    rows = [
        ("full fine-tuning", methods["full"]["trainable_parameters"], "full"),
        (lora if is_full else name, (other if is_full else own)["trainable_parameters"],
         "lora"),
    ]  # fmt: skip
    return Costs(
        linear=_bars(rows, is_log=False),
        logarithmic=_bars(rows, is_log=True),
        is_unseen=_is_unseen(rows),
        cards=[
            _parameters(own, run.estimate["model"]["parameters"], is_full),
            _memory(run, own, other, is_full),
            _storage(run, is_full),
        ],
    )


def _bars(rows: list[tuple[str, int, str]], *, is_log: bool) -> Markup:
    most = max(max(count for _, count, _ in rows), 10)
    scale = svg.logarithmic(1, most, 0, BAR_WIDTH) if is_log else svg.linear(0, most, 0, BAR_WIDTH)
    kind = "logarithmic, from 1" if is_log else "linear, from 0"
    words = "; ".join(f"{name}: {count:,}" for name, count, _ in rows)
    return svg.bars(
        [(name, max(count, 1), f"{count:,}", color) for name, count, color in rows],
        label=f"trained parameters on a scale that is {kind}: {words}",
        width=BAR_WIDTH,
        scale=scale,
    )


def _is_unseen(rows: list[tuple[str, int, str]]) -> str:
    counts = [count for _, count, _ in rows]
    pixels = BAR_WIDTH * min(counts) / max(max(counts), 1)
    return f"The lower bar is {pixels:.2g} pixels long: too short to see." if pixels < 1 else ""


def _parameters(own: Mapping[str, Any], whole: int, is_full: bool) -> Card:
    trained = own["trainable_parameters"]
    if is_full:
        return Card("Parameters", f"{trained:,}", "every one of the base's is trained")
    return Card(
        "Parameters",
        f"{trained / whole:.2%}",
        f"{trained:,} trained, {whole:,} frozen",
        f"one in {whole / trained:,.0f}" if trained else "",
    )


def _memory(
    run: RunContent, own: Mapping[str, Any], other: Mapping[str, Any], is_full: bool
) -> Card:
    device = str(run.notes.environment.get("device", ""))
    key = "gpu_bytes" if device.startswith("cuda") else "cpu_rss_bytes"
    lora = f"LoRA of rank {run.settings.get('lora.rank')}"
    beside = f"{lora} would take" if is_full else "full fine-tuning would take"
    measured = last(run.metrics, "peak_memory_bytes")
    return Card(
        "Memory",
        text.size(own[key]),
        f"{beside} {text.size(other[key])}",
        f"computed; measured at its peak: {text.size(measured)}" if measured else "computed",
    )


def _storage(run: RunContent, is_full: bool) -> Card:
    disk = run.estimate["disk"]
    adapter, model = disk["adapter_bytes"], disk["model_bytes"]
    if is_full:
        return Card("Storage", text.size(model), f"an adapter would take {text.size(adapter)}")
    times = model / adapter if adapter else 0
    tasks = 10 * model / (model + 10 * adapter)
    return Card(
        "Storage",
        text.size(adapter),
        f"a whole model takes {text.size(model)}, {times:,.0f} times as much",
        f"ten tasks on one base: {tasks:.2g} times smaller than ten models",
    )
