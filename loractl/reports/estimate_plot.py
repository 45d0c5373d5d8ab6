"""The plot of `loractl estimate`: parameters on two scales, memory by part, storage by tasks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loractl import text
from loractl.reports import figure as figures
from loractl.reports.estimate import PARTS, TITLES

COLOURS = {"full": "#4c72b0", "lora": "#dd8452", "qlora": "#55a868"}
GIB = 1024**3
INVISIBLE = 0.005  # of the axis: a bar of less than a pixel or two


def draw_estimate(path: Path, found: Mapping[str, Any]) -> None:
    """Draw the report as a .png or .svg file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    panels: Any = figure.subplots(2, 2)
    methods = found["methods"]
    _draw_parameters(panels[0, 0], methods, log=False)
    _draw_parameters(panels[0, 1], methods, log=True)
    _draw_memory(panels[1, 0], methods, found["model"]["parameters"])
    _draw_storage(panels[1, 1], found["disk"])
    settings = found["settings"]
    targets = settings["target_modules"]
    listed = targets if isinstance(targets, str) else ", ".join(targets)
    name = Path(found["model"]["name"]).name  # of a directory or hub id
    figure.suptitle(
        f"{name}: rank {settings['rank']} on {listed}, {settings['batch']} x"
        f" {settings['length']} tokens, {settings['dtype']}"
    )
    figures.save(figure, path)


def _draw_parameters(panel: Any, methods: Mapping[str, Any], *, log: bool) -> None:
    """Trained parameters of full fine-tuning and of the adapters, with a number on each bar."""
    counts = {name: methods[name]["trainable_parameters"] for name in ("full", "lora")}
    bars = panel.bar(
        [TITLES[name] for name in counts], list(counts.values()), width=0.55,
        color=[COLOURS[name] for name in counts],
    )  # fmt: skip
    share = methods["lora"]["percent_of_base"]
    labels = [f"{counts['full']:,}", f"{counts['lora']:,}\n({share:.3g}% of the base)"]
    panel.bar_label(bars, labels=labels, padding=3, fontsize=9)
    panel.set_ylabel("trained parameters")
    if log:
        panel.set_yscale("log")
        panel.set_ylim(min(counts.values()) / 30, max(counts.values()) * 10)
        panel.set_title("the same on a logarithmic scale", fontsize=10)
        return
    panel.set_ylim(0, max(counts.values()) * 1.15)
    panel.ticklabel_format(axis="y", style="plain")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value / 1e9:g}B" if value else "0")
    title = "trained parameters, linear scale"
    if counts["lora"] / counts["full"] < INVISIBLE:
        title += "\nLoRA's bar is too low to see"
    panel.set_title(title, fontsize=10)


def _draw_memory(panel: Any, methods: Mapping[str, Any], parameters: int) -> None:
    """Memory at the peak, as stacked bars by part, with what a reader would ask about them."""
    from matplotlib import colormaps

    colours = colormaps["tab10"]
    tops = dict.fromkeys(TITLES, 0.0)
    for number, part in enumerate(PARTS):
        sizes = [methods[name]["peak_parts_bytes"].get(part, 0) / GIB for name in TITLES]
        if not any(sizes):
            continue
        panel.bar(
            list(TITLES.values()), sizes, width=0.55, bottom=list(tops.values()), label=part,
            color=colours(number),
        )  # fmt: skip
        tops = {name: tops[name] + size for name, size in zip(TITLES, sizes, strict=True)}
    for place, (name, top) in enumerate(tops.items()):
        phase = methods[name]["peak_phase"]
        panel.text(place, top, f"{top:.3g} GiB\n({phase})", ha="center", va="bottom", fontsize=9)
    panel.set_ylim(0, max(tops.values()) * 1.2)
    panel.set_xlim(-0.5, 3.3)  # room for the legend beside the bars
    panel.set_ylabel("GiB allocated at the peak")
    panel.set_title("memory at the peak of a step, by part", fontsize=10)
    panel.legend(fontsize=8, loc="upper right", reverse=True)
    panel.set_xlabel("\n".join(memory_notes(methods, parameters)), fontsize=8, loc="left")


def memory_notes(methods: Mapping[str, Any], parameters: int) -> Iterator[str]:
    """What the bars leave open: the dtype of "full", and its gradients."""
    full = methods["full"]
    width = full["parts_bytes"]["weights"] / parameters
    dtype = {4: "float32", 2: "16 bits"}.get(round(width), f"{width:.2g} bytes per weight")
    yield f"full: weights, gradients and optimizer state are in {dtype}"
    gradients = full["parts_bytes"].get("gradients", 0)
    if gradients and not full["peak_parts_bytes"].get("gradients"):
        size = text.size(gradients)
        yield f"gradients ({size} in full) come after its peak, as activations are freed"


def _draw_storage(panel: Any, disk: Mapping[str, Any]) -> None:
    """Bytes on disk against the number of tasks."""
    most = max(10, disk["tasks"])
    tasks = range(1, most + 1)
    model, adapter = disk["model_bytes"] / GIB, disk["adapter_bytes"] / GIB
    panel.plot(tasks, [n * model for n in tasks], color=COLOURS["full"], label="full models")
    panel.plot(
        tasks, [model + n * adapter for n in tasks], color=COLOURS["lora"],
        label="one base and one adapter per task",
    )  # fmt: skip
    panel.set_xlabel("tasks")
    panel.set_ylabel("GiB on disk")
    panel.set_ylim(0, most * model * 1.05)
    panel.set_xlim(1, most)
    panel.grid(alpha=0.3)
    panel.set_title("storage by number of tasks", fontsize=10)
    panel.legend(fontsize=8, loc="upper left")
