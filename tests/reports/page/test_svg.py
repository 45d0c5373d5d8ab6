"""Drawings: scales go where they say, texts are escaped, and no value breaks a curve's markup."""

import math
import xml.etree.ElementTree as ET

import pytest

from loractl.reports.page import svg


def test_attributes_and_texts_are_escaped() -> None:
    made = svg.element("text", "<script>", class_='"x', text_anchor="end", x=1.5, y=None)
    assert made == '<text class="&#34;x" text-anchor="end" x="1.5">&lt;script&gt;</text>'


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.0, 0.5, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (-3, 4, [-2, 0, 2, 4]),
        (7, 7, [7]),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, found: list[float]) -> None:
    assert svg.ticks(low, high) == pytest.approx(found)


def test_a_logarithmic_scale_gives_each_decade_the_same_width() -> None:
    to_x = svg.logarithmic(1, 1e4, 0, 100)
    assert [to_x(10.0**n) for n in range(5)] == pytest.approx([0, 25, 50, 75, 100])


def test_bars_are_as_long_as_their_values() -> None:
    rows = [("full", 8.0, "8", "full"), ("LoRA & co", 2.0, "2", "lora"), ("none", 0.0, "0", "base")]
    made = ET.fromstring(svg.bars(rows, label="two", width=400))
    widths = {one.get("class"): float(one.get("width", "")) for one in made.iter("rect")}
    assert (widths["full"], widths["lora"], widths["base"]) == (400, 100, 0)
    assert made.get("aria-label") == "two" and "LoRA & co" in [t.text for t in made.iter("text")]


def drawn(
    points: list[tuple[float, float]], *, log: bool = False, dots: bool = False
) -> ET.Element:
    made = svg.lines(
        {"one": points}, label="a curve", classes={"one": "a"}, x_name="step", y_name="loss",
        log=log, dots=dots,
    )  # fmt: skip
    return ET.fromstring(made)


def test_a_curve_breaks_where_a_value_is_not_finite() -> None:
    made = drawn([(0, 1), (1, 2), (2, math.nan), (3, 4), (4, math.inf), (5, 1)], dots=True)
    path = next(one.get("d", "") for one in made.iter("path"))
    assert path.count("M") == 3 and path.count("L") == 1 and "nan" not in path
    assert len(list(made.iter("circle"))) == 4


def test_what_is_not_positive_is_not_on_a_logarithmic_axis() -> None:
    made = drawn([(1, 1e-3), (2, 0), (3, 10), (math.nan, 1)], log=True)
    assert next(one.get("d", "") for one in made.iter("path")).count("L") == 1
    labels = [one.text for one in made.iter("text")]
    assert "0.001" in labels and "10" in labels


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(0.0, 3.0), (1.0, 3.0)]])
def test_few_points_or_level_ones_are_drawn_too(
    points: list[tuple[float, float]], log: bool
) -> None:
    assert drawn(points, log=log).tag == "svg"


def test_one_decade_gets_its_ends_as_labels() -> None:
    assert svg._decades(2, 5) == [2, 5] and svg._decades(0.5, 20) == [1, 10]
