"""Drawings as SVG markup: elements, scales, bars and lines. Texts are escaped.

Colors are classes of page.css (base, a, b, full, lora, qlora, part-1 to part-8), so that a drawing
follows light, dark and print. Sizes are in pixels of the drawing, which shrinks to its place.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

Scale = Callable[[float], float]
"""From a value to a position in pixels."""

BAR, GAP = 24, 14  # heights of a bar and of the space below it
LABEL_HEIGHT = 18  # of the label above a bar


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """One element: `class_` is class, an underscore in a name is a hyphen, None is left out."""
    pairs = Markup("").join(
        Markup(' {}="{}"').format(
            name.rstrip("_").replace("_", "-"), _short(value) if _is_float(value) else value
        )
        for name, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), pairs, inside)


def picture(width: float, height: float, label: str, *children: object) -> Markup:
    """A drawing with a text for those who do not see it."""
    return element(
        "svg", *children, viewBox=f"0 0 {_short(width)} {_short(height)}", width=float(width),
        height=float(height), role="img", aria_label=label,
    )  # fmt: skip


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """A linear scale from [low, high] to [start, end]; a single value goes to the middle."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """The same for the logarithms of positive values."""
    of_log = linear(math.log10(low), math.log10(high), start, end)
    return lambda value: of_log(math.log10(value))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values in [low, high], in steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def bars(
    rows: Sequence[tuple[str, float, str, str]],
    *,
    label: str,
    width: float = 640,
    scale: Scale | None = None,
) -> Markup:
    """Horizontal bars: (name, value, text beside it, class) each; by default from zero to the
    largest value."""
    most = max((value for _, value, _, _ in rows), default=0)
    scale = scale or linear(0, most or 1, 0, width)
    parts: list[Markup] = []
    top = 0.0
    for name, value, text, kind in rows:
        parts += [
            element("text", name, x=0, y=top + 13),
            element("text", text, x=float(width), y=top + 13, text_anchor="end", class_="muted"),
            element("rect", x=0, y=top + LABEL_HEIGHT, width=float(width), height=BAR, rx=4,
                    class_="track"),
            element("rect", x=0, y=top + LABEL_HEIGHT, width=max(0.0, scale(value)), height=BAR,
                    rx=min(4.0, max(0.0, scale(value) / 2)), class_=kind),
        ]  # fmt: skip
        top += LABEL_HEIGHT + BAR + GAP
    return picture(width, max(1.0, top - GAP), label, *parts)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    label: str,
    classes: Mapping[str, str],
    x_name: str,
    y_name: str,
    width: float = 640,
    height: float = 300,
    log: bool = False,
    dots: bool = False,
    from_zero: bool = False,
) -> Markup:
    """Curves of (x, y) points over common axes; `classes` gives each its color, and `from_zero`
    lets the vertical axis begin there.

    On a logarithmic axis, points that are not positive are left out. Values that are not finite
    break a curve.
    """
    points = {
        name: [(x, y) for x, y in one if math.isfinite(x) and (not log or not y <= 0)]
        for name, one in series.items()
    }
    finite = [(x, y) for one in points.values() for x, y in one if math.isfinite(y)]
    left, bottom, top = 56.0, height - 44.0, 22.0
    xs, ys = [x for x, _ in finite] or [0, 1], [y for _, y in finite] or [0.1, 1]
    low, high = min([*ys, 0] if from_zero else ys), max(ys)
    low, high = (low, high) if low < high else (low / 2, high * 2) if log else (low - 1, high + 1)
    to_x = linear(min(xs), max(xs), left, width - 12)
    to_y = (logarithmic if log else linear)(low, high, bottom, top)
    parts = [
        *_axes(to_x, to_y, (min(xs), max(xs)), (low, high), x_name, y_name, width, height, log)
    ]
    for name, one in points.items():
        kind = classes[name]
        parts.append(element("path", d=_path(one, to_x, to_y), class_=f"line {kind}"))
        if dots:
            parts += [
                element("circle", cx=to_x(x), cy=to_y(y), r=3.5, class_=kind)
                for x, y in one
                if math.isfinite(y)
            ]
    return picture(width, height, label, *parts)


def _axes(
    to_x: Scale, to_y: Scale, xs: tuple[float, float], ys: tuple[float, float], x_name: str,
    y_name: str, width: float, height: float, log: bool,
) -> Iterator[Markup]:  # fmt: skip
    left, right, bottom = 56.0, width - 12, height - 44.0
    for y in _decades(*ys) if log else ticks(*ys, most=5):
        yield element("line", x1=left, x2=right, y1=to_y(y), y2=to_y(y), class_="tick")
        yield element("text", f"{y:g}", x=left - 8, y=to_y(y) + 4, text_anchor="end",
                      class_="muted")  # fmt: skip
    for x in ticks(*xs):
        yield element("text", f"{x:g}", x=to_x(x), y=bottom + 20, text_anchor="middle",
                      class_="muted")  # fmt: skip
    yield element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis")
    yield element("text", x_name, x=right, y=height - 4, text_anchor="end", class_="muted")
    yield element("text", y_name, x=0, y=12, class_="muted")


def _decades(low: float, high: float) -> list[float]:
    found = [10.0**n for n in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    return found if len(found) > 1 else [low, high]


def _path(points: Sequence[tuple[float, float]], to_x: Scale, to_y: Scale) -> str:
    commands: list[str] = []
    is_open = False
    for x, y in points:
        if not math.isfinite(y):
            is_open = False
            continue
        commands.append(f"{'L' if is_open else 'M'}{_short(to_x(x))} {_short(to_y(y))}")
        is_open = True
    return "".join(commands)


def _is_float(value: object) -> bool:
    return isinstance(value, float)


def _short(value: Any) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
