"""The singular values of the updates, by kind of module, and what they say of the rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from loractl.lora import intruders
from loractl.reports.inspect_plot import kind_of, layer_of
from loractl.reports.page import svg
from loractl.reports.run_page.notes import Weight

WIDTH, HEIGHT = 170.0, 140.0
LEFT, BOTTOM, TOP = 34.0, 118.0, 10.0
MOST_LAYERS, MOST_VALUES = 12, 32


@dataclass(frozen=True)
class KindOfModule:
    """The modules of one kind: their spectra, and their figures as text."""

    name: str
    modules: int
    drawing: Markup
    rank: str
    effective: str
    keeps_90: str
    norm: str
    intruders: str


def kinds_of_modules(
    updates: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Weight]
) -> list[KindOfModule]:
    """Each kind of module with its spectra, all drawn to the same height."""
    kinds: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, one in updates.items():
        if one.get("singular_values"):
            kinds.setdefault(kind_of(name), {})[name] = one
    tallest = max((max(one["singular_values"]) for one in updates.values()
                   if one.get("singular_values")), default=0.0)  # fmt: skip
    return [_describe(kind, ones, weights, tallest) for kind, ones in kinds.items()]


def _describe(
    kind: str,
    ones: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Weight],
    tallest: float,
) -> KindOfModule:
    ranks = sorted({one["rank"] for one in ones.values()})
    known = {name: weights[name] for name in ones if name in weights}
    relative = [ones[name]["norm"] / W.norm for name, W in known.items() if W.norm]
    counted = [
        (layer_of(name), W.intruders) for name, W in known.items() if W.intruders is not None
    ]
    return KindOfModule(
        name=kind,
        modules=len(ones),
        drawing=_draw(kind, ones, tallest),
        rank=f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
        effective=f"{_mean([one['effective_rank'] for one in ones.values()]):.2f}",
        keeps_90=f"{max(one['rank_90'] for one in ones.values())}",
        norm=f"{_mean(relative):.2%}" if relative else "",
        intruders=", ".join(f"{count} in layer {layer}" for layer, count in counted),
    )


def table_of_kinds(kinds: Sequence[KindOfModule]) -> dict[str, Any]:
    """The figures of each kind as the head and the rows of a table."""
    head = ["module", "count", "rank", "effective", "90%"]
    rows = [[one.name, one.modules, one.rank, one.effective, one.keeps_90] for one in kinds]
    if any(one.norm for one in kinds):
        head.append("mean ‖ΔW‖ / ‖W‖")
        rows = [[*row, one.norm] for row, one in zip(rows, kinds, strict=True)]
    if any(one.intruders for one in kinds):
        head.append("intruders")
        rows = [[*row, one.intruders] for row, one in zip(rows, kinds, strict=True)]
    return {"kinds_head": head, "kinds_rows": rows}


def intruders_in_words(weights: Mapping[str, Weight]) -> str:
    """How many intruders were found in how many weights; empty if none was looked at."""
    found = {name: W.intruders for name, W in weights.items() if W.intruders is not None}
    if not found:
        return ""
    layers = ", ".join(map(str, sorted({layer_of(name) for name in found})))
    return (
        f"Of the {intruders.TOP} strongest directions of each of {len(found)} tuned weights"
        f" (layers {layers}), {sum(found.values()):,} in all are intruders: no direction of the"
        f" base has a cosine of"
        f" {intruders.EPSILON:g} or more with them. They go with forgetting (arXiv 2410.21228)."
    )


def _draw(kind: str, ones: Mapping[str, Mapping[str, Any]], tallest: float) -> Markup:
    shown = _spread(sorted(ones, key=layer_of), MOST_LAYERS)
    longest = max(min(len(one["singular_values"]), MOST_VALUES) for one in ones.values())
    to_x = svg.linear(1, max(2, longest), LEFT, WIDTH - 8)
    to_y = svg.linear(0, tallest or 1, BOTTOM, TOP)
    parts = []
    for y in svg.ticks(0, tallest or 1, most=3):
        parts += [
            svg.element("line", x1=LEFT, x2=WIDTH - 8, y1=to_y(y), y2=to_y(y), class_="tick"),
            svg.element("text", f"{y:g}", x=LEFT - 5, y=to_y(y) + 4, text_anchor="end",
                        class_="muted"),
        ]  # fmt: skip
    for index in dict.fromkeys((1, longest)):
        parts.append(svg.element("text", index, x=to_x(index), y=BOTTOM + 17,
                                 text_anchor="middle", class_="muted"))  # fmt: skip
    for place, name in enumerate(shown):
        values = ones[name]["singular_values"][:MOST_VALUES]
        corners = " ".join(
            f"{to_x(index):.1f},{to_y(value):.1f}" for index, value in enumerate(values, start=1)
        )
        depth = 0.25 + 0.75 * (place + 1) / len(shown)
        parts.append(
            svg.element(
                "polyline", svg.element("title", f"layer {layer_of(name)}"), points=corners,
                class_="line lora", stroke_opacity=depth,
            )
        )  # fmt: skip
        if len(values) == 1:
            parts.append(svg.element("circle", cx=to_x(1), cy=to_y(values[0]), r=2.5,
                                     class_="lora", fill_opacity=depth))  # fmt: skip
    label = f"singular values of the updates of {kind}, the largest {tallest:.3g} over all kinds"
    return svg.picture(WIDTH, HEIGHT, label, *parts)


def _spread(names: Sequence[str], most: int) -> list[str]:
    """At most `most` of the names, evenly, the first and the last among them."""
    if len(names) <= most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
