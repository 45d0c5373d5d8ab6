"""A weight and its update, drawn to scale: W, and beside it B and A, whose product is as large."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from loractl.reports.inspect_plot import kind_of
from loractl.reports.page import svg

LONGEST = 180.0  # pixels of the largest side of any W
THINNEST = 0.75  # pixels of a side: a rank of 8 beside 11,008 would be a tenth of one
GAP, SPACE = 34.0, 16.0  # beside the plus, and beside B
COMPUTED = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj",
    "down_proj",
)  # fmt: skip
"""The usual names of a layer's modules, in the order of their use."""


@dataclass(frozen=True)
class Drawn:
    """One size of weight: its modules, in words, and the drawing."""

    names: str
    count: int
    sizes: str
    drawing: Markup


def drawn_to_scale(updates: Mapping[str, Mapping[str, Any]], most: int = 6) -> list[Drawn]:
    """One drawing for each size of W, in the order of the modules, with the largest rank there; all
    at one scale and of one width, so that they stay so where there is little room."""
    groups: dict[tuple[int, int], dict[str, int]] = {}
    for name, one in updates.items():
        groups.setdefault((one["d_out"], one["d_in"]), {})[name] = one["rank"]
    if not groups:
        return []
    scale = LONGEST / max(max(size) for size in groups)
    widths = (2 * d_in * scale + thickness(ranks, scale) for (_, d_in), ranks in groups.items())
    widest = max(widths) + GAP + SPACE
    return [_draw(size, ranks, scale, widest) for size, ranks in list(groups.items())[:most]]


def thickness(ranks: Mapping[str, int], scale: float) -> float:
    """Of B and A in pixels."""
    return max(max(ranks.values()) * scale, THINNEST)


def _draw(
    size: tuple[int, int], ranks: Mapping[str, int], scale: float, picture_width: float
) -> Drawn:
    d_out, d_in = size
    kinds, rank = dict.fromkeys(kind_of(name) for name in ranks), max(ranks.values())
    height, width = max(d_out * scale, THINNEST), max(d_in * scale, THINNEST)
    thin = thickness(ranks, scale)
    left = width + GAP
    top = 22.0
    drawing = svg.picture(
        picture_width,
        max(height, 40) + top + 4,
        f"W of {d_out} by {d_in} beside B of {d_out} by {rank} and A of {rank} by {d_in}, to scale",
        svg.element("text", "W", x=width / 2, y=14, text_anchor="middle", class_="math"),
        svg.element("rect", x=0, y=top, width=width, height=height, class_="base"),
        svg.element("text", "+", x=width + GAP / 2, y=top + height / 2 + 6, text_anchor="middle"),
        svg.element("text", "B", x=left + thin / 2, y=14, text_anchor="middle", class_="math"),
        svg.element("rect", x=left, y=top, width=thin, height=height, class_="b"),
        svg.element(
            "text",
            "A",
            x=left + thin + SPACE / 2 + width / 2,
            y=14,
            text_anchor="middle",
            class_="math",
        ),
        svg.element("rect", x=left + thin + SPACE / 2, y=top, width=width, height=thin, class_="a"),
    )
    sizes = f"W {d_out:,} × {d_in:,} · B {d_out:,} × {rank} · A {rank} × {d_in:,}"
    if (least := min(ranks.values())) < rank:
        sizes += f" (ranks from {least})"
    return Drawn(", ".join(kinds), len(ranks), sizes, drawing)


def common_scale(updates: Mapping[str, Mapping[str, Any]]) -> str:
    """s of the update s B A, if it is the same everywhere."""
    scales = {one["scale"] for one in updates.values()}
    return f"{scales.pop():g}" if len(scales) == 1 else ""


def in_reading_order(updates: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The modules in the order in which a layer computes them, where they have the usual names."""

    def place(name: str) -> int:
        kind = kind_of(name)
        return COMPUTED.index(kind) if kind in COMPUTED else len(COMPUTED)

    return dict(sorted(updates.items(), key=lambda item: place(item[0])))
