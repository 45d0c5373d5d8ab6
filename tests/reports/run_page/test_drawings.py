"""The pictures of what was trained: sizes to scale, norms as shades, spectra as lines."""

import re
import xml.etree.ElementTree as ET

import pytest

from loractl.reports.run_page.heat_map import heat_map
from loractl.reports.run_page.matrices import common_scale, drawn_to_scale, in_reading_order
from loractl.reports.run_page.notes import Weight
from loractl.reports.run_page.spectra import intruders_in_words, kinds_of_modules, table_of_kinds
from tests.reports.run_page.made import MODULES, update


def rects(drawing: object) -> list[dict[str, float | str]]:
    found = ET.fromstring(str(drawing)).iter("rect")
    return [
        {
            key: value if key in ("class", "rx") else float(value)
            for key, value in one.attrib.items()
        }
        for one in found
    ]


def test_w_b_and_a_have_the_proportions_of_their_sizes() -> None:
    wide, tall = update(rank=2), {**update(rank=2), "d_out": 160, "d_in": 20}
    found = drawn_to_scale({"l.0.q_proj": wide, "l.1.q_proj": wide, "l.0.up_proj": tall})
    assert [(one.names, one.count) for one in found] == [("q_proj", 2), ("up_proj", 1)]
    assert found[0].sizes == "W 40 × 80 · B 40 × 2 · A 2 × 80"
    scale = set()
    for one, (d_out, d_in) in zip(found, ((40, 80), (160, 20)), strict=True):
        W, B, A = rects(one.drawing)
        sides = [(W["height"], d_out), (W["width"], d_in), (B["height"], d_out), (B["width"], 2),
                 (A["height"], 2), (A["width"], d_in)]  # fmt: skip
        scale |= {round(float(pixels) / size, 2) for pixels, size in sides}
    assert max(scale) - min(scale) < 0.02, "all are drawn at one scale"
    assert len({re.findall(r'viewBox="0 0 (\S+)', str(one.drawing))[0] for one in found}) == 1
    assert drawn_to_scale({}) == []


def test_modules_of_one_size_are_one_drawing_with_the_largest_of_their_ranks() -> None:
    (one,) = drawn_to_scale({"l.0.q_proj": update(rank=2), "l.1.q_proj": update(rank=4)})
    assert one.count == 2
    assert one.sizes == "W 40 × 80 · B 40 × 4 · A 4 × 80 (ranks from 2)"
    W, B, A = rects(one.drawing)
    assert float(B["width"]) / float(W["width"]) == pytest.approx(4 / 80, abs=1e-3)
    assert B["width"] == A["height"]


def test_a_common_scale_is_named_and_several_are_not() -> None:
    assert common_scale({"a": update(scale=2.0), "b": update(scale=2.0)}) == "2"
    assert common_scale({"a": update(scale=2.0), "b": update(scale=4.0)}) == ""


def test_modules_are_in_the_order_of_their_use_and_unknown_ones_last() -> None:
    names = ["l.0.down_proj", "l.0.c_attn", "l.1.q_proj", "l.0.q_proj"]
    assert list(in_reading_order({name: update() for name in names})) == [
        "l.1.q_proj", "l.0.q_proj", "l.0.down_proj", "l.0.c_attn"
    ]  # fmt: skip


def test_the_shade_of_a_cell_is_its_share_of_the_largest() -> None:
    updates = {name: {**update(), "norm": float(i + 1)} for i, name in enumerate(MODULES)}
    found = heat_map(updates, {})
    assert found is not None and found.measure == "‖ΔW‖" and (found.least, found.most) == ("1", "6")
    shades = [float(one["fill-opacity"]) for one in rects(found.drawing)]
    assert len(shades) == 6 and shades[-1] == 1.0
    assert shades == pytest.approx([0.04 + 0.96 * n / 6 for n in range(1, 7)], abs=0.006)
    assert "layer 2, v_proj: ‖ΔW‖ = 6" in found.drawing


def test_beside_its_weight_a_norm_is_relative_and_experts_are_one_cell() -> None:
    names = ["l.0.experts.up_proj[0]", "l.0.experts.up_proj[1]"]
    updates = {
        name: {**update(), "norm": norm} for name, norm in zip(names, (3.0, 4.0), strict=True)
    }
    found = heat_map(updates, {"l.0.experts.up_proj": Weight(10.0)})
    assert found is not None and found.measure == "‖ΔW‖ / ‖W‖" and found.most == "0.5"
    assert len(rects(found.drawing)) == 1
    assert heat_map(updates, {"another": Weight(1.0)}) is None and heat_map({}, {}) is None


def test_what_is_outside_the_layers_has_a_row_of_its_own_above_them() -> None:
    found = heat_map({"l.0.q_proj": update(), "lm_head": update(), "x" * 40: update()}, {})
    assert found is not None
    tops = {str(one["y"]) for one in rects(found.drawing)}
    assert len(tops) == 2 and "outside the layers, lm_head: ‖ΔW‖ = 0.5" in found.drawing
    assert f">{'x' * 24}</text>" in found.drawing


def test_an_update_of_zero_is_drawn_faintly() -> None:
    found = heat_map({"l.0.q_proj": {**update(), "norm": 0.0}}, {})
    assert found is not None and [one["fill-opacity"] for one in rects(found.drawing)] == [0.04]


def test_the_figures_of_a_kind_are_over_its_modules() -> None:
    updates = {name: {**update(), "effective_rank": float(i)} for i, name in enumerate(MODULES)}
    weights = {name: Weight(5.0, intruders=i if i < 2 else None) for i, name in enumerate(MODULES)}
    q, v = kinds_of_modules(updates, weights)
    assert (q.name, q.modules, q.rank, q.effective, q.keeps_90) == ("q_proj", 3, "2", "2.00", "1")
    assert (q.norm, q.intruders, v.intruders) == ("10.00%", "0 in layer 0", "1 in layer 0")
    table = table_of_kinds([q, v])
    assert table["kinds_head"][-2:] == ["mean ‖ΔW‖ / ‖W‖", "intruders"]
    assert table["kinds_rows"][1][-2:] == ["10.00%", "1 in layer 0"]
    plain = table_of_kinds(kinds_of_modules(updates, {}))
    assert plain["kinds_head"] == ["module", "count", "rank", "effective", "90%"]


def test_ranks_that_differ_are_a_range_and_a_rank_of_one_is_a_dot() -> None:
    (kind,) = kinds_of_modules({"l.0.q": update(rank=1), "l.1.q": update(rank=2)}, {})
    assert kind.rank == "1 to 2" and str(kind.drawing).count("<circle") == 1
    assert kinds_of_modules({"whole": {"norm": 1.0}}, {}) == []


def test_of_many_layers_some_are_drawn_the_first_and_the_last_among_them() -> None:
    (kind,) = kinds_of_modules({f"l.{n}.q": update() for n in range(40)}, {})
    shown = re.findall(r"<title>layer (\d+)</title>", str(kind.drawing))
    assert len(shown) == 12 and shown[0] == "0" and shown[-1] == "39"


def test_intruders_are_told_with_where_they_were_looked_for() -> None:
    weights = {"l.3.q": Weight(1.0, 2), "l.7.q": Weight(1.0, 3), "l.9.q": Weight(1.0)}
    said = intruders_in_words(weights)
    assert "of 2 tuned weights (layers 3, 7), 5 in all" in said and "0.5 or more" in said
    assert intruders_in_words({"l.9.q": Weight(1.0)}) == ""
