"""A commented config reads back as the values that were written."""

import random
from typing import Any

import pytest

from loractl.config import strict_yaml
from loractl.reports.commented_config import WIDTH, as_number, commented

TEXTS = (
    "plain", "a, b", "it's", '"q"', "{x}", "[y]", "# no", "true", "1e-4", "", "a: b", "über",
    "-", "*all", "C:\\dir", "line\nbreak", " space ", "off", "~", "q_proj", "a\x85b",
)  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> Any:
    kinds = [
        lambda: rng.choice(TEXTS),
        lambda: rng.randint(-9, 10**9),
        lambda: float(f"{rng.random() * 10 ** rng.randint(-7, 7):.3g}"),
        lambda: rng.choice((True, False, None)),
        lambda: [value(rng, 2) for _ in range(rng.randint(0, 3))],
        lambda: {rng.choice(TEXTS[:5]): value(rng, 2) for _ in range(rng.randint(1, 3))},
    ]
    return rng.choice(kinds[: 4 if depth else 6])()


@pytest.mark.parametrize("seed", range(60))
def test_any_values_read_back(seed: int) -> None:
    rng = random.Random(seed)
    settings = [(f"s{i % 3}.k{i}", value(rng), rng.choice(("why", "w" * 120))) for i in range(9)]
    text = commented(["title"], settings, ["end"])
    tree: dict[str, Any] = {}
    for key, one, _ in settings:
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = one
    assert strict_yaml.parse(text).value == tree
    assert text.startswith("# title\n") and text.endswith("\n# end\n")


def test_long_comments_go_above_and_lists_of_sources_get_a_line_each() -> None:
    sources = [{"path": "a.jsonl", "weight": 2}, {"path": "b, c.jsonl"}]
    text = commented([], [("data.train", sources, "rows"), ("seed", 0, "why " * 40)])
    assert '    - {path: "b, c.jsonl"}\n' in text
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert strict_yaml.parse(text).value == {"data": {"train": sources}, "seed": 0}


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.3e-3, "1.3e-3"), (0.13, "0.13"), (2e-5, "2e-5"), (1e-10, "1e-10"), (3.0, "3.0"),
     (0.0, "0.0")],
)  # fmt: skip
def test_numbers_are_written_as_people_write_them(number: float, text: str) -> None:
    assert as_number(number) == text and float(text) == number
