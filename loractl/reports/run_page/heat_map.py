"""How much each weight changed, as a map of layers and kinds of modules."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from loractl.reports.inspect_plot import kind_of, layer_of
from loractl.reports.page import svg
from loractl.reports.run_page.notes import Weight
from loractl.reports.run_page.numbers import number

CELL, LEFT, TOP = 38.0, 40.0, 74.0
TALLEST = 560.0
FAINTEST = 0.04
"""Of a cell: one that did not change is still seen to be there."""


@dataclass(frozen=True)
class HeatMap:
    """The map, what its cells are, and the values of its two ends."""

    drawing: Markup
    measure: str
    least: str
    most: str


def heat_map(
    updates: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Weight]
) -> HeatMap | None:
    """The norm of each update, by that of its weight where those are known.

    Modules of one kind in one layer, such as experts, are one cell: the root of the sum of squares.
    """
    is_relative = any(one.norm for one in weights.values())
    cells: dict[tuple[int, str], list[float]] = {}
    for name, one in updates.items():
        norm = number(one.get("norm"))
        if is_relative and norm is not None:
            W = weights.get(name)
            norm = norm / W.norm if W is not None and W.norm else None
        if norm is not None:
            cells.setdefault((layer_of(name), kind_of(name)), []).append(norm)
    if not cells:
        return None
    values = {place: math.sqrt(sum(v * v for v in found)) for place, found in cells.items()}
    least, most = min(values.values()), max(values.values())
    measure = "‖ΔW‖ / ‖W‖" if is_relative else "‖ΔW‖"
    return HeatMap(_draw(values, most, measure), measure, f"{least:.2g}", f"{most:.2g}")


def _draw(values: Mapping[tuple[int, str], float], most: float, measure: str) -> Markup:
    layers = sorted({layer for layer, _ in values})
    kinds = list(dict.fromkeys(kind for _, kind in values))
    tall = min(20.0, max(6.0, TALLEST / len(layers)))
    every = max(1, math.ceil(14 / tall))
    parts = []
    for column, kind in enumerate(kinds):
        x = LEFT + (column + 0.5) * CELL
        turn = f"rotate(-52 {x:.1f} {TOP - 8:.1f})"
        parts.append(svg.element("text", kind, x=x, y=TOP - 8, transform=turn))
    for row, layer in enumerate(layers):
        y = TOP + row * tall
        if row % every == 0:
            parts.append(
                svg.element("text", layer, x=LEFT - 8, y=y + tall / 2 + 4.5, text_anchor="end",
                            class_="muted")
            )  # fmt: skip
        for column, kind in enumerate(kinds):
            value = values.get((layer, kind))
            if value is None:
                continue
            share = FAINTEST + (1 - FAINTEST) * (value / most if most else 0.0)
            parts.append(
                svg.element(
                    "rect",
                    svg.element("title", f"layer {layer}, {kind}: {measure} = {value:.3g}"),
                    x=LEFT + column * CELL + 1, y=y + 0.5, width=CELL - 2, height=tall - 1,
                    rx=2, class_="lora", fill_opacity=share,
                )
            )  # fmt: skip
    label = (
        f"{measure} of {len(values)} weights in {len(layers)} layers: at most {most:.3g}, in"
        f" {_where_most(values)}"
    )
    width = LEFT + CELL * len(kinds) + 46
    return svg.picture(width, TOP + tall * len(layers) + 4, label, *parts)


def _where_most(values: Mapping[tuple[int, str], float]) -> str:
    layer, kind = max(values, key=lambda place: values[place])
    return f"{kind} of layer {layer}"
