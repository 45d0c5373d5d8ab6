"""The page in a browser: its arithmetic is that of Python, its controls work, and nothing is amiss
on a phone or a desktop, in light or dark, in either language."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from loractl.models.shape import read as shapes
from loractl.models.shape.sizes import SIZES
from loractl.planning import estimate
from loractl.planning.request import Request
from loractl.reports.explain.lesson import STOPS, render_lesson
from tests import browser
from tests.browser import Page, Pages
from tests.reports.explain.lessons import few_sizes, lesson

pytestmark = pytest.mark.slow
TARGETS = ("minimal", "attention", "all-linear")
METHODS = ("lora", "qlora", "dora", "full")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    with browser.started(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page in each language, of every known size."""
    folder = tmp_path_factory.mktemp("lesson")
    found = {lang: folder / f"{lang}.html" for lang in ("en", "zh")}
    for lang, path in found.items():
        assert main(["explain", "--model", "7B", "--lang", lang, "--out", str(path)]) == 0
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_nothing_is_amiss(
    lang: str, width: int, dark: bool, pages: Pages, made: dict[str, Path]
) -> None:
    with pages.open(made[lang], width=width, dark=dark) as page:
        page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        assert page.overflow() == []
        assert page.faults(browser.axe()) == []
        assert (page.complaints, page.requests) == ([], [])


def settings(n: int) -> list[dict[str, Any]]:
    choose = random.Random(29)
    return [
        {
            "model": choose.choice(list(SIZES)), "targets": choose.choice(TARGETS),
            "method": choose.choice(METHODS), "rank": choose.choice(STOPS),
            "checkpointing": choose.random() < 0.5,
        }
        for _ in range(n)
    ]  # fmt: skip


def exact(setting: dict[str, Any]) -> dict[str, Any]:
    """What `loractl estimate` says of a setting."""
    request = Request(
        rank=setting["rank"], target_modules=setting["targets"],
        method="dora" if setting["method"] == "dora" else "lora",
        checkpointing=setting["checkpointing"],
    )  # fmt: skip
    return estimate.report(setting["model"], shapes.named(setting["model"]), request)


def test_the_arithmetic_of_the_page_is_that_of_estimate_in_50_settings(
    pages: Pages, made: dict[str, Path]
) -> None:
    asked = settings(50)
    assert len({json.dumps(one) for one in asked}) > 45
    with pages.open(made["en"]) as page:
        for setting in asked:
            found = page.evaluate(f"figuresOf({json.dumps(setting)})")
            right = exact(setting)
            lora = right["methods"]["lora"]
            assert found["trained"] == lora["trainable_parameters"], setting
            assert found["share"] * 100 == pytest.approx(lora["percent_of_base"])
            assert found["file"] == right["disk"]["adapter_bytes"]
            assert found["alpha"] == right["settings"]["alpha"]
            kinds = {one["kind"]["name"]: one["values"] for one in found["kinds"]}
            assert kinds == {name: one["parameters"] for name, one in lora["by_kind"].items()}
            for name, number in found["flops"].items():
                assert number == right["flops_per_step"][name], name
            for name, one in found["memories"].items():
                method = right["methods"][name if name in right["methods"] else "lora"]
                if name == "qlora" and setting["method"] == "dora":
                    continue  # estimate's is DoRA on a quantized base, the page's plain QLoRA
                assert one["phase"] == method["peak_phase"], (setting, name)
                parts = {part: size for part, size in method["peak_parts_bytes"].items() if size}
                assert {part: size for part, size in one["parts"].items() if size} == parts
                assert one["bytes"] == method["gpu_bytes"]
                assert (one["gpu"] or [None])[0] == next(iter(method["fits"]), None)


def shown(page: Page, key: str) -> str:
    text = page.evaluate(f"document.querySelector('[data-show={key}]').textContent")
    assert isinstance(text, str)
    return text


def choose(page: Page, identifier: str, value: str) -> None:
    page.evaluate(
        f"(({{ value }}) => {{ const one = document.getElementById('{identifier}');"
        f" one.value = value; one.dispatchEvent(new Event('input', {{ bubbles: true }})); }})"
        f"({{ value: {json.dumps(value)} }})"
    )


def test_the_published_count_is_on_the_page(pages: Pages, made: dict[str, Path]) -> None:
    with pages.open(made["en"]) as page:
        choose(page, "targets", "minimal")
        assert shown(page, "lora_trained") == "4,194,304"
        assert "6,738,415,616" in page.evaluate("document.getElementById('linear').textContent")
        choose(page, "model", "8B")
        choose(page, "targets", "all-linear")
        assert shown(page, "lora_trained") == "20,971,520"


def test_the_rank_is_set_with_the_keyboard(pages: Pages, made: dict[str, Path]) -> None:
    with pages.open(made["en"]) as page:
        for _ in range(5):  # skip link, three selects, then the slider
            page.press("Tab", 9)
        assert page.evaluate("document.activeElement.id") == "rank"
        before = shown(page, "lora_trained")
        page.press("ArrowRight", 39)
        assert shown(page, "rank_set") == "16"
        assert page.evaluate("document.activeElement.getAttribute('aria-valuetext')") == "16"
        double = int(shown(page, "lora_trained").replace(",", ""))
        assert double == 2 * int(before.replace(",", ""))
        page.press("Tab", 9)
        assert page.evaluate("document.activeElement.id") == "matrix"


def test_each_control_changes_what_it_is_for(pages: Pages, made: dict[str, Path]) -> None:
    with pages.open(made["en"]) as page:
        one = "document.getElementById"
        choose(page, "matrix", "5")
        assert (shown(page, "matrix"), shown(page, "d_out")) == ("up_proj", "11,008")
        memory = shown(page, "gpu_bytes")
        page.evaluate(f"{one}('checkpointing').click()")
        assert shown(page, "gpu_bytes") != memory
        choose(page, "tasks-slider", "9")
        assert page.evaluate(f"{one}('task-buttons').childElementCount") == 9
        page.evaluate(f"{one}('task-buttons').children[7].click()")
        assert (
            page.evaluate(f"{one}('task-buttons').querySelector('[aria-pressed=true]').textContent")
            == "8 medicine"
        )
        assert page.evaluate(f"{one}('hub').querySelectorAll('.spoke.on').length") == 1
        page.evaluate("document.querySelector('button[data-step=\"2\"]').click()")
        assert page.evaluate("document.querySelectorAll('.stage.on').length") == 1
        choose(page, "frame", "7")
        assert shown(page, "frame_step") == "80" and shown(page, "loss") == "0%"
        choose(page, "cut", "5")
        assert shown(page, "cut_error") == "0%"
        choose(page, "method", "full")
        assert shown(page, "trained_short") == "6.74B" and shown(page, "less_memory") == "1×"
        assert (page.complaints, page.requests) == ([], [])


def test_the_questions_lead_to_what_recommend_says(
    pages: Pages, made: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pages.open(made["en"]) as page:
        choose(page, "model", "70B")
        for name, value in (("question", "complex"), ("rows", "many")):
            page.evaluate(f"document.querySelector('[name={name}][value={value}]').click()")
        argv = ["recommend", "--task", "complex", "--model", "70B", "--data-size", "50k", "--json"]
        assert main(argv) == 0
        right = json.loads(capsys.readouterr().out)
        chosen = right.get("choices", right)
        assert shown(page, "a_rank") == str(chosen["rank"]["value"]) == "64"
        assert shown(page, "a_alpha") == str(chosen["alpha"]["value"])
        page.evaluate("document.getElementById('take').click()")
        assert shown(page, "rank_set") == "64"
        assert "loractl estimate --model 70B --rank 64 --targets all-linear" in shown(
            page, "command"
        )


def test_the_spectrum_of_a_run_is_drawn_with_its_hostile_name(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_sizes(monkeypatch, "0.5B")
    name = "</script><script>window.bad=1</script><img src=x onerror='window.bad=1'>"
    values = [[3.0, 1.0, 0.5], [0.0, 0.0, 0.0]]
    spectrum = {
        name: {"values": values, "effective": 1.7, "rank": 3},
        "q_proj": {"values": [[0.0]], "effective": 0.0, "rank": 1},
    }
    path = tmp_path / "hostile.html"
    path.write_text(render_lesson(lesson(name, spectrum=spectrum, of_run=name), "en"), "utf-8")
    with pages.open(path, width=360) as page:
        assert page.evaluate("window.bad") is None
        assert page.evaluate("document.querySelectorAll('#spectrum svg').length") == 2
        assert name in page.evaluate("document.getElementById('model').selectedOptions[0].text")
        assert (page.complaints, page.requests, page.overflow()) == ([], [], [])


def test_it_prints(pages: Pages, made: dict[str, Path]) -> None:
    with pages.open(made["en"]) as page:
        printed = page.send("Page.printToPDF", printBackground=True, paperWidth=8.27)
        assert printed["data"].startswith("JVBERi")  # %PDF in base64
        page.send("Emulation.setEmulatedMedia", media="print")
        assert page.overflow() == []
        assert (
            page.evaluate("getComputedStyle(document.querySelector('.settings')).position")
            == "static"
        )
