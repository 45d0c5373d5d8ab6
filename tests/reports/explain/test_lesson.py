"""The page is one file that loads nothing, in two languages; names come out as text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from loractl.lora.ranks import UnmatchedError
from loractl.planning.request import Request
from loractl.reports.explain.lesson import STOPS, render_lesson
from loractl.reports.explain.texts import LANGUAGES, texts
from tests.reports.explain.lessons import few_sizes, lesson

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onfocus="alert(1)" autofocus="',
    "{{ 7 * 7 }}{% raw %}",
    "</option></select><iframe src=//evil.example>",
    "\u202e<!--\u2028{model}",
)
LOADS = {"src", "href", "srcset", "poster", "data", "action", "formaction", "xlink:href"}


@pytest.fixture(autouse=True)
def two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    few_sizes(monkeypatch, "0.5B", "7B")


class Seen(HTMLParser):
    """The tags of a page, the ids, what it would load, and its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.active: list[str] = []
        self.data: dict[str, Any] = {}
        self.is_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.is_data = found.get("id") == "data"
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in LOADS and not (value or "").startswith(("#", "data:,")):
                self.loaded.append(f"{tag} {name}={value}")
            if name.startswith("on") or name == "style":
                self.active.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self.is_data:
            self.data = json.loads(data)
            self.is_data = False


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_page_is_one_small_file_that_loads_nothing(lang: str) -> None:
    text = render_lesson(lesson(), lang)
    found = Seen(text)
    assert len(text.encode()) < 2_000_000
    assert found.loaded == [] and found.active == [] and "http://www.w3.org/2000/svg" in text
    assert re.findall(r"https?://[^\s\"'`]+", text) == ["http://www.w3.org/2000/svg"]  # a name
    assert f'<html lang="{lang}">' in text and texts(lang)["hero"]["title"] in text
    assert len(found.ids) == len(set(found.ids))


def test_headings_go_down_one_level_at_a_time_from_a_single_first() -> None:
    levels = [int(level) for level in re.findall(r"<h(\d)", render_lesson(lesson(), "en"))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_comes_out_as_text(name: str) -> None:
    spectrum = {name: {"values": [[1.0, 0.5]], "effective": 1.9, "rank": 2}}
    usual = Seen(render_lesson(lesson("mine", spectrum=spectrum, of_run="run"), "en"))
    text = render_lesson(lesson(name, spectrum=spectrum, of_run=name), "en")
    found = Seen(text)
    assert found.tags == usual.tags and found.active == [] and found.loaded == []
    assert found.data["models"]["own"]["name"] == name
    assert list(found.data["spectrum"]) == [name]
    assert "49" not in re.findall(r"<title>(.*?)</title>", text, re.DOTALL)[0]


def data_of(request: Request, name: str = "mine") -> dict[str, Any]:
    return Seen(render_lesson(lesson(name, request), "en")).data


def test_it_begins_with_the_settings_that_were_asked_for() -> None:
    found = data_of(Request(rank=12, alpha=7.0, target_modules="attention", checkpointing=True))
    assert found["chosen"] == {
        "model": "own", "targets": "attention", "method": "lora", "rank": 12,
        "checkpointing": True, "tasks": 6,
    }  # fmt: skip
    assert found["stops"] == sorted({*STOPS, 12}) and found["alpha"] == 7.0
    assert data_of(Request(), "7B")["chosen"]["model"] == "7B"


@pytest.mark.parametrize(
    ("request_", "method"),
    [
        (Request(method="full"), "full"),
        (Request(method="dora"), "dora"),
        (Request(method="adalora"), "adalora"),
        (Request(quantization="nf4-double"), "qlora"),
    ],
)
def test_the_method_of_a_config_is_the_one_it_begins_with(request_: Request, method: str) -> None:
    found = data_of(replace(request_, target_modules="minimal"))
    assert found["chosen"]["method"] == method and method in found["methods"]


def test_what_differs_from_the_defaults_of_estimate_is_in_its_command() -> None:
    found = data_of(Request(batch=2, dtype="float16", packing=False, target_modules="minimal"))
    assert found["flags"] == " --batch 2 --dtype float16 --no-packing"
    assert data_of(Request(target_modules="minimal"))["flags"] == ""


def test_the_bits_of_a_packed_weight_are_those_of_its_kind() -> None:
    for quantization, bits in (("none", "4.5"), ("nf4-double", "4.13"), ("int8", "8")):
        request = Request(quantization=quantization, target_modules="minimal")
        assert f"into {bits} bits" in render_lesson(lesson("mine", request), "en")


def test_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(UnmatchedError):
        render_lesson(lesson("mine", Request(target_modules=["absent"])), "en")
