"""The page says the same in both languages, and its texts hold markup of ours alone."""

import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loractl.models.shape.sizes import SIZES
from loractl.planning import by_rank, recommend
from loractl.planning.peak_memory import CUDA_CONTEXT
from loractl.reports.estimate import PARTS
from loractl.reports.explain import texts as texts_module
from loractl.reports.explain.texts import LANGUAGES, texts

HERE = Path(texts_module.__file__).parent
HAN = re.compile("[\u4e00-\u9fff]")


def flat(part: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(part, dict):
        for key, one in part.items():
            yield from flat(one, f"{path}.{key}")
    elif isinstance(part, list):
        for number, one in enumerate(part):
            yield from flat(one, f"{path}.{number}")
    else:
        yield path, part


def read(lang: str) -> dict[str, str]:
    return dict(flat(tomllib.loads((HERE / f"{lang}.toml").read_text("utf-8"))))


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"\{(\w+)\}", text) + re.findall(r'data-show="(\w+)"', text))


def test_both_languages_have_the_same_texts_with_the_same_numbers_in_them() -> None:
    english, chinese = read("en"), read("zh")
    assert english.keys() == chinese.keys()
    numberless = {".idea.two", ".steps.one"}  # one language may name a number twice
    for key, text in english.items():
        if key not in numberless:
            assert set(placeholders(text)) == set(placeholders(chinese[key])), key


def test_the_chinese_is_chinese_with_its_own_punctuation() -> None:
    names = {".path.lora", ".path.qlora", ".choose.alpha", ".js.times"}
    english = read("en")
    for key, text in read("zh").items():
        plain = re.sub(r"<[^>]*>|\{\w+\}", "", text)
        assert not re.search(f"{HAN.pattern}[,;:?(]|[,;?]{HAN.pattern}", plain), (key, text)
        if not HAN.search(plain):
            assert key in names or text == english[key], (key, text)


class Markup(HTMLParser):
    """Checks that tags are closed in their order, and that no attribute is a script or a style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"b", "span", "var", "sub", "code", "em", "s"}, tag
        assert {name for name, _ in attrs} <= {"data-show"}, attrs
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("lang", LANGUAGES)
def test_markup_in_the_texts_is_whole_and_nothing_is_loaded(lang: str) -> None:
    for key, text in read(lang).items():
        Markup(text)
        assert "http" not in text and (not key.startswith(".js") or "<" not in text), key


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_word_that_planning_uses_has_a_text(lang: str) -> None:
    words, t = texts(lang)["js"], texts(lang)
    assert set(words["parts"]) == {*PARTS, "context"} and CUDA_CONTEXT > 0
    assert set(words["targets"]) == {*by_rank.PRESETS, "own"}
    assert list(words["classes"]) == [name for _, name in recommend.SIZES]
    assert {"simple", "medium", "complex"} == set(recommend.RANKS) <= set(t["choose"])
    assert set(words["phases"]) == {"loss", "blocks", "update"} and len(SIZES) > 10
