"""The plot of `loractl inspect`: singular values of the updates, one panel per kind of module."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loractl.reports import figure as figures

COLUMNS = 4
LIGHTEST = 0.9  # of the color map, whose end is hard to see on white


def draw_spectra(path: Path, spectra: Mapping[str, Sequence[float]]) -> None:
    """Draw each module's singular values, from the first layer (dark) to the last (light)."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    kinds: dict[str, dict[str, Sequence[float]]] = {}
    for name, values in spectra.items():
        kinds.setdefault(kind_of(name), {})[name] = values
    layers = [layer_of(name) for name in spectra]
    first, last = min(layers), max(layers)
    columns = min(COLUMNS, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(1 + 3.0 * columns, 1 + 2.4 * rows), layout="constrained")
    panels: Any = figure.subplots(rows, columns, sharey=True, squeeze=False)
    colours = colormaps["viridis"]
    for panel, (kind, ones) in zip(panels.flat, kinds.items(), strict=False):
        for name, values in ones.items():
            colour = colours(LIGHTEST * (layer_of(name) - first) / max(1, last - first))
            ranks = range(1, len(values) + 1)
            panel.plot(ranks, values, color=colour, linewidth=1.2, marker="o", markersize=3)
        panel.set_title(kind, fontsize=10)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    # Only now: a limit on one panel stops the autoscaling of all and would cut off higher values.
    largest = max(max(values) for values in spectra.values())
    panels[0, 0].set_ylim(0, 1.05 * largest or 1.0)
    for panel in list(panels.flat)[len(kinds) :]:
        panel.set_visible(False)
    figure.supxlabel("index of the singular value", fontsize=10)
    figure.supylabel("singular value of dW", fontsize=10)
    figure.suptitle("Singular values of the updates, by kind of module", fontsize=11)
    _add_color_bar(figure, panels, first, last)
    figures.save(figure, path)


def kind_of(module: str) -> str:
    """The last part of a module's path, shared by all layers and experts: q_proj."""
    return module.rpartition(".")[2].partition("[")[0]


def layer_of(name: str) -> int:
    """The number of the layer that a module is in: the first number in its path; 0 without one."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def _add_color_bar(figure: Any, panels: Any, first: int, last: int) -> None:
    """Say which color stands for which layer; with a single one, there is nothing to say."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    if first == last:
        return
    shown = ListedColormap(colormaps["viridis"]([LIGHTEST * i / 255 for i in range(256)]))
    scale = ScalarMappable(Normalize(first, last), shown)
    bar = figure.colorbar(scale, ax=panels, fraction=0.03, pad=0.02)
    bar.set_label("layer", fontsize=10)
    bar.locator = MaxNLocator(integer=True)
