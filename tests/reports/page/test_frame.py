"""A page is one file that loads nothing, and nothing in its values can run or end an element."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from loractl.reports.page import frame

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "\u2028<img src=x onerror=alert(1)>",
    "]]>&lt;",
    "' onload='x",
)


class Read(HTMLParser):
    """The elements of a page, and the text in each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts and not self.scripts[-1]:
            self.scripts[-1] = data


def page(script: Path, **more: object) -> str:
    return frame.render(
        "page/frame.html.jinja",
        {},
        title="a page",
        scripts=(script,),
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "one.js"
    path.write_bytes(b"const x = 1 < 2 && '</b>';\r\n")
    return path


def test_the_policy_names_each_text_by_its_hash_and_forbids_the_rest(script: Path) -> None:
    text = page(script)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    allowed = policy[1].replace("&#39;", "'")
    assert allowed.startswith("default-src 'none'; ")
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in allowed
    assert "unsafe" not in allowed and "http" not in allowed


def test_a_page_without_scripts_allows_none_and_a_directive_can_be_added() -> None:
    assert "script-src 'none'" in frame.policy(["p {}"], [], {})
    assert frame.policy([], [], {"connect-src": "'self'"}).endswith("; connect-src 'self'")


@pytest.mark.parametrize("text", HOSTILE)
def test_values_come_out_as_text_and_data_as_they_were(text: str, script: Path) -> None:
    made = Read(page(script, data={"name": text}))
    plain = Read(page(script, data={"name": ""}))
    assert [tag for tag, _ in made.tags] == [tag for tag, _ in plain.tags]
    assert json.loads(made.scripts[0]) == {"name": text}
    titled = frame.render("page/frame.html.jinja", {}, title=text)
    assert [tag for tag, _ in Read(titled).tags] == [
        tag for tag, _ in plain.tags if tag != "script"
    ]


def test_a_page_is_written_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    frame.save(path, "one")
    frame.save(path, "two")
    assert path.read_text() == "two" and list(tmp_path.iterdir()) == [path]
    (taken := tmp_path / "taken.html").mkdir()
    with pytest.raises(OSError):
        frame.save(taken, "three")
    assert sorted(tmp_path.iterdir()) == [path, taken]


def test_a_name_that_is_not_utf_8_does_not_break_the_page(tmp_path: Path) -> None:
    frame.save(tmp_path / "page.html", b"a\xff".decode("utf-8", "surrogateescape"))
    assert (tmp_path / "page.html").read_text("utf-8") == "a?"


def test_a_number_that_json_does_not_have_is_refused_before_it_breaks_a_page() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        frame.safe_json([float("nan")])


def test_a_template_that_reads_what_is_not_given_fails(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError):
        frame._environment().from_string("{{ absent }}").render()
