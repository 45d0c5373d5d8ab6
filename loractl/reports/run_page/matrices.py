"""A weight and its update, drawn to scale: W, and beside it B and A, whose product is as large."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from loractl.reports.inspect_plot import kind_of
from loractl.reports.page import svg

LONGEST = 150.0  # pixels of the largest side of any W
THINNEST = 0.75  # pixels: what a rank of 8 in 4096 would be is no longer visible
GAP = 34.0
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
    """One drawing for each size of W and rank, in the order of the modules, all at one scale."""
    groups: dict[tuple[int, int, int], list[str]] = {}
    for name, one in updates.items():
        groups.setdefault((one["d_out"], one["d_in"], one["rank"]), []).append(name)
    if not groups:
        return []
    scale = LONGEST / max(max(d_out, d_in) for d_out, d_in, _ in groups)
    return [_draw(size, names, scale) for size, names in list(groups.items())[:most]]


def _draw(size: tuple[int, int, int], names: Sequence[str], scale: float) -> Drawn:
    d_out, d_in, rank = size
    kinds = dict.fromkeys(kind_of(name) for name in names)
    height, width = max(d_out * scale, THINNEST), max(d_in * scale, THINNEST)
    thin = max(rank * scale, THINNEST)
    left = width + GAP
    top = 22.0
    drawing = svg.picture(
        2 * width + GAP + thin + 16,
        max(height, 40) + top + 4,
        f"W of {d_out} by {d_in} beside B of {d_out} by {rank} and A of {rank} by {d_in}, to scale",
        svg.element("text", "W", x=width / 2, y=14, text_anchor="middle", class_="math"),
        svg.element("rect", x=0, y=top, width=width, height=height, class_="base"),
        svg.element("text", "+", x=width + GAP / 2, y=top + height / 2 + 6, text_anchor="middle"),
        svg.element("text", "B", x=left + thin / 2, y=14, text_anchor="middle", class_="math"),
        svg.element("rect", x=left, y=top, width=thin, height=height, class_="b"),
        svg.element(
            "text", "A", x=left + thin + 8 + width / 2, y=14, text_anchor="middle", class_="math"
        ),
        svg.element("rect", x=left + thin + 8, y=top, width=width, height=thin, class_="a"),
    )
    sizes = f"W {d_out:,} × {d_in:,} · B {d_out:,} × {rank} · A {rank} × {d_in:,}"
    return Drawn(", ".join(kinds), len(names), sizes, drawing)


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
