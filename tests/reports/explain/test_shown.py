"""Every number that the texts leave room for is one that the scripts know, and vice versa."""

import re
from pathlib import Path

from loractl.reports.explain import lesson

HERE = Path(lesson.__file__).parent


def test_each_shown_number_is_computed_and_each_computed_one_is_shown() -> None:
    pages = [*HERE.glob("*.jinja"), *HERE.glob("*.toml")]
    wanted = {
        name
        for path in pages
        for name in re.findall(r'data-show=\\?"(\w+)\\?"', path.read_text("utf-8"))
    }
    wanted |= {f"a_{name}" for name in ("rank", "alpha", "targets", "rate")}  # in a loop
    wanted |= {f"less_{name}" for name in ("values", "memory", "work")}
    script = (HERE / "shown_numbers.js").read_text("utf-8")
    known = set(re.findall(r"^      (\w+)[:,]", script, re.MULTILINE)) | {"rank_set", "command"}
    assert wanted == known


def test_every_script_is_on_the_page_and_the_last_one_starts_it() -> None:
    assert {path.stem for path in HERE.glob("*.js")} == set(lesson.SCRIPTS)
    assert lesson.SCRIPTS[-1] == "lesson"
