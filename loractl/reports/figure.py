"""Figures as files: the accepted names, and writing them."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from loractl.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")


def require_plot(path: Path, option: str = "--plot") -> None:
    """Refuse, before any work, a figure that cannot be drawn."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(
            f"{option}: found {path}, expected a name that ends in {' or '.join(ENDINGS)}"
        )
    if find_spec("matplotlib") is None:
        raise ConfigError(f"{option}: matplotlib is not installed; pip install matplotlib")


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as .png or .svg, without a window or a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svg = path.suffix.lower() == ".svg"
    canvas = FigureCanvasSVG(figure) if svg else FigureCanvasAgg(figure)
    canvas.print_figure(path, dpi=150)
