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

CELL, LEFT = 38.0, 40.0
TURN = 52.0  # degrees: of the names of the columns
CHARACTER, LONGEST_NAME = 7.2, 24  # pixels of one, and how many are shown
OUTSIDE = -1
Place = tuple[int, str]
"""A layer, or OUTSIDE, and a kind of module."""
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

    Modules of one kind in one layer, such as experts, are one cell: the norm of all their values.
    """
    is_relative = any(one.norm for one in weights.values())
    squares: dict[Place, float] = {}
    beside: dict[Place, dict[str, float]] = {}
    for name, one in updates.items():
        norm = number(one.get("norm"))
        weight = name.partition("[")[0]  # one, for all experts
        if norm is None or (is_relative and not (weight in weights and weights[weight].norm)):
            continue
        place = row_of(name), kind_of(name)
        squares[place] = squares.get(place, 0.0) + norm**2
        beside.setdefault(place, {})[weight] = weights[weight].norm ** 2 if is_relative else 1.0
    if not squares:
        return None
    values = {
        place: math.sqrt(sum_ / sum(beside[place].values())) if is_relative else math.sqrt(sum_)
        for place, sum_ in squares.items()
    }
    least, most = min(values.values()), max(values.values())
    measure = "‖ΔW‖ / ‖W‖" if is_relative else "‖ΔW‖"
    return HeatMap(_draw(values, most, measure), measure, f"{least:.2g}", f"{most:.2g}")


def row_of(name: str) -> int:
    """The number of the layer that a module is in, OUTSIDE for an embedding or a head."""
    return layer_of(name) if any(part.isdigit() for part in name.split(".")) else OUTSIDE


def _draw(values: Mapping[Place, float], most: float, measure: str) -> Markup:
    layers = sorted({layer for layer, _ in values})
    kinds = list(dict.fromkeys(kind for _, kind in values))
    tall = min(20.0, max(6.0, TALLEST / len(layers)))
    every = max(1, math.ceil(14 / tall))
    longest = CHARACTER * min(LONGEST_NAME, max(map(len, kinds)))
    top = 18 + longest * math.sin(math.radians(TURN))
    parts = []
    for column, kind in enumerate(kinds):
        x, y = LEFT + (column + 0.5) * CELL, top - 8
        turn = f"rotate(-{TURN:g} {x:.1f} {y:.1f})"
        parts.append(svg.element("text", kind[:LONGEST_NAME], x=x, y=y, transform=turn))
    for row, layer in enumerate(layers):
        y = top + row * tall
        if row % every == 0:
            parts.append(
                svg.element("text", "–" if layer == OUTSIDE else layer, x=LEFT - 8,
                            y=y + tall / 2 + 4.5, text_anchor="end", class_="muted")
            )  # fmt: skip
        for column, kind in enumerate(kinds):
            value = values.get((layer, kind))
            if value is None:
                continue
            share = FAINTEST + (1 - FAINTEST) * (value / most if most else 0.0)
            parts.append(
                svg.element(
                    "rect",
                    svg.element("title", f"{_say((layer, kind))}: {measure} = {value:.3g}"),
                    x=LEFT + column * CELL + 1, y=y + 0.5, width=CELL - 2, height=tall - 1,
                    rx=2, class_="lora", fill_opacity=share,
                )
            )  # fmt: skip
    where = _say(max(values, key=lambda place: values[place]))
    label = f"{measure} of {len(values)} weights: at most {most:.3g}, in {where}"
    width = LEFT + CELL * len(kinds) + longest * math.cos(math.radians(TURN))
    return svg.picture(width, top + tall * len(layers) + 4, label, *parts)


def _say(place: Place) -> str:
    layer, kind = place
    return f"outside the layers, {kind}" if layer == OUTSIDE else f"layer {layer}, {kind}"
